from importlib.metadata import entry_points, requires

import pytest
from packaging.requirements import Requirement
from tests.support.documents import Block, shell_blocks

from vtryon import extras
from vtryon.catalog import CATALOG
from vtryon.cli.app import run_command
from vtryon.errors import SettingsError


def test_every_command_has_its_extras_and_every_row_is_a_command() -> None:
    commands = {entry.name for entry in entry_points(group="vtryon.commands")}
    assert {row.split()[0] for row in extras.COMMANDS} == commands


def test_every_extra_that_is_named_is_one_of_the_package() -> None:
    rows = [*extras.COMMANDS.values(), *map(extras.of_service, CATALOG)]
    rows += [extras.of_service("sampling", backend) for backend in ("torch", "triton", "scripted")]
    assert {name for row in rows for name in row} <= set(extras.all_extras())


@pytest.mark.parametrize("extra", extras.all_extras())
def test_the_packages_of_an_extra_are_those_of_its_metadata(extra: str) -> None:
    listed = map(Requirement, requires("vtryon") or [])
    added = {one.name for one in listed if one.marker and one.marker.evaluate({"extra": extra})}
    assert set(extras.packages(extra)) == added
    assert extras.absent_packages(extra) == ()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("serve all", {"base", "server"}),
        ("serve all jobs --backend scripted", {"base", "jobs"}),
        ("serve sampling --backend=triton", {"base", "server", "triton"}),
        ("serve rest", {"base", "rest"}),
        ("serve kafka", {"base", "kafka"}),
        ("try-on a.png b.png -o c.png", {"base", "cli", "server"}),
        ("try-on a.png b.png -o c.png --endpoint host:1", {"cli"}),
        ("batch in out --endpoint=host:1", {"cli"}),
        ("jobs list", {"cli"}),
        ("kafka registry", {"broker"}),
        ("kafka topics check", {"kafka"}),
        ("up --kafka", {"broker", "kafka", "mesh"}),
        ("models export-onnx all out", {"onnx"}),
        ("models show", {"server"}),
        ("models export-triton out", {"server", "triton"}),
        ("serve rest --listen 127.0.0.1:8080", {"base", "rest"}),
        ("serve jobs --listen 127.0.0.1:1 --checkpoint nowhere", {"base", "jobs"}),
    ],
)
def test_a_command_line_needs_the_extras_of_what_it_starts(line: str, wanted: set[str]) -> None:
    assert set(extras.needed(line.split())) == wanted


@pytest.mark.parametrize(
    ("line", "variables", "extra"),
    [
        ("serve rest --listen 127.0.0.1:8080", {}, "rest"),
        ("serve kafka --topology hybrid", {"VTRYON_BACKEND": "torch"}, "kafka"),
        ("serve --listen 127.0.0.1:0 sampling --backend scripted", {}, "base"),
        ("serve sampling", {"VTRYON_SAMPLING_BACKEND": "scripted"}, "base"),
        ("serve latent-encoder", {"VTRYON_LATENT_ENCODER_BACKEND": "scripted"}, "base"),
        (
            "serve all --listen 127.0.0.1:0",
            {"VTRYON_BACKEND": "scripted", "VTRYON_JOBS_BACKEND": "torch"},
            "base",
        ),
    ],
)
def test_a_service_starts_where_its_own_extra_alone_is_installed(
    line: str, variables: dict[str, str], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = {"cli", "base", extra}
    monkeypatch.setattr(extras, "absent_packages", lambda one: ("torch",) * (one not in present))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert extras.missing(extras.needed(line.split())) == {}


def test_a_stage_whose_own_backend_is_torch_needs_it_beside_scripted_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VTRYON_BACKEND", "scripted")
    monkeypatch.setenv("VTRYON_DECODING_BACKEND", "torch")
    assert set(extras.needed(["serve", "all"])) == {"base", "server"}
    assert set(extras.needed(["serve", "sampling"])) == {"base"}
    assert "server" in extras.needed(["try-on", "a.png", "b.png"])


def test_what_is_missing_is_said_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "absent_packages", lambda extra: ("uvicorn",) * (extra == "rest"))
    assert run_command(["serve", "rest", "--listen", "127.0.0.1:0"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: `vtryon serve rest` needs packages that are not installed (uvicorn): "
        "pip install 'vtryon[rest]'\n"
    )


def test_more_than_five_missing_packages_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"package-{number}" for number in range(8))
    monkeypatch.setattr(extras, "absent_packages", lambda _: names)
    with pytest.raises(SettingsError, match=r"package-4 and 3 more\): pip install 'vtryon\[a\]'"):
        extras.require("it", ["a"])


def test_an_unexpected_error_leaves_its_traceback_in_a_file_and_none_on_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    def fail(words: list[str]) -> tuple[str, ...]:
        raise ZeroDivisionError("of all things")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(extras, "needed", fail)
    assert run_command(["jobs", "list", "--secret", "canary"]) == 1
    log = tmp_path / "vtryon" / "errors.log"
    said = capsys.readouterr().err
    assert said == f"error: unexpected ZeroDivisionError; the details are in {log}\n"
    assert "of all things" in log.read_text()
    assert "canary" not in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("block", shell_blocks(), ids=lambda block: block.name)
def test_a_block_of_the_documents_installs_what_its_lines_need(block: Block) -> None:
    assert block.extras or not block.commands, f"no pip install line before {block.lines[0]}"
    for words in block.commands:
        needed = {name for extra in extras.needed(words) for name in extras.packages(extra)}
        installed = {name for extra in block.extras for name in extras.packages(extra)}
        assert needed <= installed, words
