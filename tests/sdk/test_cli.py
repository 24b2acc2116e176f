import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from tests.support.processes import VTRYON

from vtryon import extras
from vtryon_mesh.validate import find_envoy
from vtryon_services.bridges.kafka.broker import find_broker


def vtryon(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    import os

    return subprocess.run(
        [VTRYON, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160", **variables},
        timeout=100,
    )


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    done = vtryon("example-pair", "--seed", 3, "--out", "new/folder", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "new" / "folder"


def test_an_example_pair_is_drawn_the_same_each_time(pair: Path, tmp_path) -> None:
    vtryon("example-pair", "--seed", 3, "--out", tmp_path, cwd=tmp_path)
    names = {"person.png", "garment.png", "truth.png", "prompt.txt"}
    assert {path.name for path in pair.iterdir()} == names
    for name in names:
        assert (pair / name).read_bytes() == (tmp_path / name).read_bytes()


def test_try_on_embedded_leaves_the_picture_and_the_previews(pair: Path, tmp_path) -> None:
    done = vtryon(
        *("try-on", pair / "person.png", pair / "garment.png", "-o", "out/result.png"),
        *("--steps", 3, "--seed", 5, "--previews", "out/previews"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert size(tmp_path / "out" / "result.png") == (96, 128)
    previews = sorted(path.name for path in (tmp_path / "out" / "previews").iterdir())
    assert previews == ["step-001.png", "step-002.png", "step-003.png"]
    for word in ("latent-encoder (person, garment)", "sampling", "wall time", "seed 5"):
        assert word in done.stderr

    sheet = vtryon("contact-sheet", pair, "out", "-o", "sheet.png", cwd=tmp_path)
    assert sheet.returncode == 0
    assert size(tmp_path / "sheet.png")[0] > 1000


def test_options_of_previews_say_how_many_and_how_large(pair: Path, tmp_path, served_mesh) -> None:
    command = ("try-on", pair / "person.png", pair / "garment.png", "-o", "result.png")
    asked = ("--endpoint", served_mesh.target, "--steps", 5)
    options = ("--preview-every", 2, "--preview-max-pixels", 100)
    done = vtryon(*command, *asked, *options, "--previews", "previews", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    previews = sorted((tmp_path / "previews").iterdir())
    assert [path.name for path in previews] == ["step-002.png", "step-004.png", "step-005.png"]
    for path in previews:
        width, height = size(path)
        assert width * height <= 100

    done = vtryon(*command, *asked, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "--preview-every, --preview-max-pixels: needs --previews" in done.stderr
    done = vtryon(*command, "--previews", "previews", "--preview-every", 0, cwd=tmp_path)
    assert done.returncode == 2
    assert "--preview-every" in done.stderr


def test_try_on_against_an_endpoint_as_json(pair: Path, tmp_path, served_mesh) -> None:
    done = vtryon(
        *("try-on", pair / "person.png", pair / "garment.png", "-o", "result.png"),
        *("--endpoint", served_mesh.target, "--json", "--seed", 1),
        cwd=tmp_path,
        VTRYON_TOKEN="not-checked-by-this-server",
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["seed"], said["width"], said["height"]) == (1, 96, 128)
    assert set(said["stages"]) == {"latent-encoder", "text-encoder", "sampling", "decoding"}
    assert said["ledger"]["wall_seconds"] > 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nobody.png", "nothing.png", "-o", "r.png"], 2, ["nobody.png", "PICTURE_UNREADABLE"]),
        (["{person}", "{garment}", "-o", "r.gif"], 2, [".png, .jpg, .jpeg, .webp"]),
        (["{person}", "{garment}", "-o", "{person}/r.png"], 2, ["can't write", "person.png"]),
        (["{person}", "{garment}", "-o", "r.png", "--steps", "0"], 2, ["steps", "it is 0"]),
        (
            ["{person}", "{garment}", "-o", "r.png", "--checkpoint", "nowhere"],
            2,
            ["no checkpoint in nowhere", "CHECKPOINT_NOT_FOUND"],
        ),
        (
            ["{person}", "{garment}", "-o", "r.png", "--endpoint", "127.0.0.1:1", "--timeout", "5"],
            1,
            ["STAGE_UNAVAILABLE"],
        ),
        (
            ["{person}", "{garment}", "-o", "r.png", "--endpoint", "a:1", "--checkpoint", "b"],
            2,
            ["--checkpoint is for the embedded mesh"],
        ),
    ],
)
def test_what_goes_wrong_is_said_in_a_line_and_no_file_is_left(
    pair: Path, tmp_path, arguments: list[str], code: int, words: list[str]
) -> None:
    given = [
        item.format(person=pair / "person.png", garment=pair / "garment.png") for item in arguments
    ]
    done = vtryon("try-on", *given, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in ["error:", *words]:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        (["dlq", "list", "jobs"], {"VTRYON_KAFKA_SERVES": "film"}),
        (["kafka", "topics", "check"], {"VTRYON_KAFKA_SERVES": "film"}),
        (["models", "export-onnx", "all", "out", "--checkpoint", "nowhere"], {}),
        (["mesh", "render", "out", "--description", "empty.yaml"], {}),
    ],
)
def test_settings_that_do_not_hold_are_exit_code_2_of_every_command(
    tmp_path, words: list[str], variables: dict[str, str]
) -> None:
    (tmp_path / "empty.yaml").write_text("{}")
    done = vtryon(*words, cwd=tmp_path, **variables)
    assert (done.returncode, "error:" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export-onnx", "all", "out", "--checkpoint", "nowhere"], "no checkpoint in nowhere"),
        (["export-triton", "out", "--checkpoint", "nowhere"], "no checkpoint in nowhere"),
        (["export-triton", "out", "--dtype", "fp8"], "fp8"),
        (["make", "out", "--like", "tiny"], "--random"),
        (["make", ".", "--like", "tiny", "--random"], "exists"),
        (["make", "out", "--like", "huge", "--random"], "tiny"),
    ],
)
def test_models_refuses_what_it_is_given_before_the_import_of_torch(
    tmp_path, words: list[str], said: str
) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('imported')")
    done = vtryon("models", *words, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["torch.py"]


def test_a_failure_as_json_is_json(pair: Path, tmp_path) -> None:
    done = vtryon("try-on", "a.png", "b.png", "-o", "r.png", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["error"]["reason"] == "PICTURE_UNREADABLE"


def findings(tmp_path: Path, **variables: str) -> dict[str, dict]:
    done = vtryon("doctor", "--json", cwd=tmp_path, **variables)
    return {item["name"]: item for item in json.loads(done.stdout)}


def test_the_doctor_finds_what_the_commands_find(tmp_path) -> None:
    found = findings(tmp_path)
    assert {f"extra {extra}" for extra in extras.all_extras()} <= set(found)
    assert found["backend torch"]["ok"]
    assert found["checkpoint mannequin"]["ok"]
    assert found["envoy"]["found"] == str(find_envoy())
    assert found["broker for one machine"]["found"] == find_broker()
    assert found["jobs database"]["found"].startswith("SQLite in ")
    shown = vtryon("doctor", cwd=tmp_path)
    assert shown.returncode == 0
    assert "backend scripted" in shown.stdout


def test_the_doctor_finds_a_triton_server_where_triton_up_does(tmp_path) -> None:
    empty = findings(tmp_path, PATH="/nowhere")["tritonserver"]
    assert not empty["ok"]
    assert "make triton" in empty["remedy"]
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    found = findings(tmp_path, PATH=str(tmp_path))["tritonserver"]
    assert found["ok"]
    assert found["found"] == str(program)


def test_the_doctor_says_which_configured_servers_do_not_answer(tmp_path) -> None:
    found = findings(
        tmp_path,
        VTRYON_TRITON_URL="127.0.0.1:1",
        VTRYON_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1",
        VTRYON_JOBS_DATABASE_URL="postgresql+asyncpg://someone:secret@127.0.0.1:1/jobs",
    )
    for name, variable in {
        "triton": "VTRYON_TRITON_URL",
        "kafka": "VTRYON_KAFKA_BOOTSTRAP_SERVERS",
        "jobs database": "VTRYON_JOBS_DATABASE_URL",
    }.items():
        assert not found[name]["ok"]
        assert "127.0.0.1:1 is not reachable" in found[name]["found"]
        assert variable in found[name]["remedy"]
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["nonesuch"], {}, ["no stage nonesuch", "latent-encoder, text-encoder"]),
        (["sampling"], {"VTRYON_SAMPLING_PLACE": "2"}, ["VTRYON_SAMPLING_PLACE is no setting"]),
        (["sampling"], {"VTRYON_MAX_CONCURRENCY": "0"}, ["VTRYON_MAX_CONCURRENCY is '0'"]),
        (["sampling", "--checkpoint", "nowhere"], {}, ["no checkpoint in nowhere"]),
        (["sampling", "--device", "cuda:9"], {}, ["'cuda:9' can't be used"]),
        (["sampling", "--listen", "256.1.1.1:1"], {}, ["can't serve on 256.1.1.1:1"]),
    ],
)
def test_serve_says_what_is_set_up_wrongly(tmp_path, arguments, variables, words) -> None:
    free = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
    done = vtryon("serve", *arguments, *free, cwd=tmp_path, **variables)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_help_names_every_subcommand(tmp_path) -> None:
    done = vtryon("--help", cwd=tmp_path)
    for word in ("try-on", "serve", "doctor", "example-pair", "contact-sheet"):
        assert word in done.stdout


@pytest.mark.parametrize("words", ["list", "show x", "watch x", "cancel x", "fetch x -o r.png"])
def test_commands_of_jobs_want_a_server(words: str, tmp_path) -> None:
    done = vtryon("jobs", *words.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert "give --endpoint host:port" in done.stderr
