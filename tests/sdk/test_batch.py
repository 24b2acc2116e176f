"""`vtryon batch`: pairs and manifests to results; run again, it does what is missing (F21)."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tests.support.pictures import png
from tests.support.processes import VTRYON, served

import vtryon
from vtryon.batch.entries import BatchEntry, Found, Layout, find_entries
from vtryon.batch.journal import NAME as JOURNAL
from vtryon.batch.journal import Journal, JournalLine
from vtryon.cli.batch import _report

PICTURE = png()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with served(
        *("all", "--backend", "scripted"),
        VTRYON_SAMPLING_SCRIPTED_SECONDS="0.02",
        VTRYON_SAMPLING_MAX_CONCURRENCY="4",
    ) as process:
        yield process.target


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Twelve pairs, in both layouts."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number in range(6):
        own = folder / f"a{number}"
        own.mkdir()
        (own / "person.png").write_bytes(PICTURE)
        (own / "garment.png").write_bytes(PICTURE)
        (own / "prompt.txt").write_text(f"wear it, {number}\n")
        (folder / f"b{number}_person.png").write_bytes(PICTURE)
        (folder / f"b{number}_garment_1.png").write_bytes(PICTURE)
        (folder / f"b{number}_garment_2.png").write_bytes(PICTURE)
    (folder / "notes.md").write_text("nobody's business")
    return folder


def batch(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in (VTRYON, "batch", *words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, **options)


def test_a_folder_of_pairs(pairs: Path, tmp_path: Path, endpoint: str) -> None:
    out = tmp_path / "out"
    done = batch(pairs, out, "--steps", 2, "--seed", 3, "--endpoint", endpoint, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["entries"], report["succeeded"], report["failed"]) == (12, 12, 0)
    assert {line["seed"] for line in report["results"]} == {3}
    [fit, *_] = report["results"][0]["fits"]
    assert (fit["subject"], fit["from_width"]) == ("person", 96)
    names = {f"{kind}{number}.png" for kind in "ab" for number in range(6)}
    assert names <= {path.name for path in out.iterdir()}
    with Image.open(out / "contact-sheet.png") as shown:
        assert shown.size[0] > 8 * 100
    assert json.loads((out / "report.json").read_text()) == report
    before = {name: (out / name).stat().st_mtime_ns for name in names}
    again = batch(pairs, out, "--steps", 2, "--seed", 3, "--endpoint", endpoint)
    assert again.returncode == 0
    assert "12 of 12 succeeded" in again.stderr
    assert before == {name: (out / name).stat().st_mtime_ns for name in names}
    (pairs / "a0" / "prompt.txt").write_text("something else")
    (out / "b1.png").unlink()
    batch(pairs, out, "--steps", 2, "--seed", 3, "--endpoint", endpoint)
    after = {name: (out / name).stat().st_mtime_ns for name in names}
    assert {name for name in names if before[name] != after[name]} == {"a0.png", "b1.png"}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_manifest(tmp_path: Path, endpoint: str, kind: str) -> None:
    (tmp_path / "p.png").write_bytes(PICTURE)
    (tmp_path / "g.png").write_bytes(PICTURE)
    (tmp_path / "broken.png").write_bytes(b"")
    rows = [
        {"name": "one", "person": "p.png", "garments": "g.png", "steps": 1, "seed": 9},
        {"name": "two", "person": "p.png", "garments": "g.png;g.png", "prompt": "both"},
        {"name": "bad", "person": "broken.png", "garments": "g.png"},
        {"name": "range", "person": "p.png", "steps": 999},
    ]
    manifest = tmp_path / f"work.{kind}"
    if kind == "jsonl":
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        columns = ["name", "person", "garments", "steps", "seed", "prompt"]
        lines = [",".join(columns)]
        lines += [",".join(str(row.get(name, "")) for name in columns) for row in rows]
        manifest.write_text("\n".join(lines))
    out = tmp_path / "out"
    done = batch(manifest, out, "--endpoint", endpoint, "--json", "--format", "png", "--steps", 2)
    assert done.returncode == 1
    report = {line["name"]: line for line in json.loads(done.stdout)["results"]}
    assert report["one"]["seed"] == 9
    assert report["two"]["out"] == "two.png"
    assert report["bad"]["reason"] == "PAYLOAD_INVALID"
    assert report["range"]["reason"] == "FIELD_INVALID"
    assert "/" not in report["bad"]["message"]


BAD = {
    "a path upwards": {"person": "../p.png"},
    "an absolute path that is none": {"person": "/etc/\0"},
    "a name of the batch's own": {"person": "p.png", "name": "Contact-Sheet"},
    "a prompt that is NaN": {"person": "p.png", "prompt": float("nan")},
    "a prompt that is a list": {"person": "p.png", "prompt": ["wear it"]},
    "a prompt that is a mapping": {"person": "p.png", "prompt": {"en": "wear it"}},
    "a prompt that is true": {"person": "p.png", "prompt": True},
    "steps that are a fraction": {"person": "p.png", "steps": 2.9},
    "a seed that is true": {"person": "p.png", "seed": True},
    "garments that are numbers": {"person": "p.png", "garments": [1]},
    "a name that is a number": {"person": "p.png", "name": 3},
    "a name alike but for case": {"person": "p.png", "name": "GOOD"},
    "a link out": {"person": "link.png"},
    "a NUL": {"person": "p\0.png"},
    "a name with a slash": {"person": "p.png", "name": "a/b"},
    "a hidden name": {"person": "p.png", "name": ".x"},
    "a name too long": {"person": "p.png", "name": "x" * 255},
    "no person": {"name": "x"},
    "four garments": {"person": "p.png", "garments": ["p.png"] * 4},
    "an unknown field": {"person": "p.png", "stepz": 3},
    "steps that are none": {"person": "p.png", "steps": "many"},
}


@pytest.mark.parametrize("name", BAD)
def test_manifests_that_do_not_hold_are_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "p.png").write_bytes(PICTURE)
    (tmp_path / "p.png").write_bytes(PICTURE)
    (inside / "link.png").symlink_to(tmp_path / "p.png")
    manifest = inside / "work.jsonl"
    manifest.write_text('{"person": "p.png", "name": "good"}\n' + json.dumps(BAD[name]) + "\n")
    with pytest.raises(vtryon.RequestError, match=r"line 2|alike but for case"):
        find_entries(manifest)


def test_a_folder_is_not_left_by_links_and_devices_are_no_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    (tmp_path / "p.png").write_bytes(PICTURE)
    os.mkfifo(folder / "x_person.png")
    (folder / "x_garment.png").write_bytes(PICTURE)
    [entry] = find_entries(folder).entries
    with pytest.raises(vtryon.RequestError, match="not a regular file"):
        entry.key({})
    (folder / "y_person.png").symlink_to(tmp_path / "p.png")
    (folder / "y_garment.png").write_bytes(PICTURE)
    _, entry = find_entries(folder).entries
    with pytest.raises(vtryon.RequestError, match=r"'y_person\.png' leads out"):
        entry.key({})


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    folder = root / "pairs"
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


PROBLEMS = {
    "a picture of another format": ("a/person.heic a/garment.png", "'person.heic' is not a PNG"),
    "no garment": ("a/person.png a/shirt.png", "no garment; there are 'person.png', 'shirt.png'"),
    "no garment beside others": ("a_person.png", "no garment; there are 'a_person.png'"),
    "no person": ("a/garment.png", "no person; there are 'garment.png'"),
    "another case": ("a_Person.PNG a_garment.png", "'a_Person.PNG': parts are called person"),
    "two persons": ("a/person.png a/person.jpg a/garment.png", "several files for one part"),
    "another prompt file": ("a/person.png a/garment.png a/prompt.md", "a file prompt.txt"),
    "four garments": ("a/person.png " + " ".join(f"a/garment{n}.png" for n in range(4)), "4 garm"),
    "pictures without a part": ("a/front.png a/back.png", "no person; there are 'back.png'"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_looks_like_a_part_is_named_in_a_failed_entry(name: str, tmp_path: Path) -> None:
    files, words = PROBLEMS[name]
    good = {"b/person.png": PICTURE, "b/garment.png": PICTURE}
    folder = folder_of(tmp_path, dict.fromkeys(files.split(), PICTURE) | good)
    bad, fine = find_entries(folder).entries
    assert (bad.name, fine.name, fine.problem) == ("a", "b", "")
    assert words in bad.problem


@pytest.mark.timeout(20)
def test_a_prompt_file_that_is_none_fails_its_entry_alone(tmp_path: Path) -> None:
    names = ("link", "device", "pipe", "bytes", "large", "plain")
    files = {f"{name}/{part}.png": PICTURE for name in names for part in ("person", "garment")}
    folder = folder_of(tmp_path, files)
    (tmp_path / "secret").write_text("canary")
    (folder / "link/prompt.txt").symlink_to(tmp_path / "secret")
    (folder / "device/prompt.txt").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe/prompt.txt")
    (folder / "bytes/prompt.txt").write_bytes(b"\xff\xfa\xfe")
    (folder / "large/prompt.txt").write_bytes(b"x" * 100_000)
    (folder / "plain/prompt.txt").write_bytes("\ufeff wear it \r\n".encode())
    found = {entry.name: entry for entry in find_entries(folder).entries}
    assert {name for name, entry in found.items() if entry.problem} == {*names} - {"plain"}
    assert found["plain"].options == {"prompt": " wear it "}
    assert "canary" not in str(found)


def test_names_are_the_same_in_every_normal_form_and_case_with_layout_loose(tmp_path: Path) -> None:
    decomposed, composed = "Zoe\u0308", "Zo\u00eb"
    files = [f"{decomposed}_Person.PNG", f"{composed}_GARMENT_1.jpg", "notes.md", "b/extra/x.png"]
    folder = folder_of(tmp_path, dict.fromkeys(files, PICTURE))
    found = find_entries(folder, Layout.LOOSE)
    [entry] = found.entries
    assert (entry.name, entry.problem, len(entry.garments)) == (composed, "", 1)
    assert found.unused == ["b/", "notes.md"]


def test_files_that_no_entry_uses_are_named(tmp_path: Path) -> None:
    files = ["a/person.png", "a/person.heic", "a/garment.png", "a/garmnet2.png", "c.png"]
    found = find_entries(folder_of(tmp_path, dict.fromkeys(files, PICTURE)))
    assert [entry.problem for entry in found.entries] == [""]
    assert found.unused == ["a/garmnet2.png", "a/person.heic", "c.png"]


def test_the_layout_of_viton_hd(tmp_path: Path) -> None:
    files = {f"{kind}/0{number}.jpg": PICTURE for kind in ("image", "cloth") for number in (1, 2)}
    lists = {"test_pairs.txt": b"\xef\xbb\xbf01.jpg 01.jpg\r\n01.jpg 02.jpg\r\n02.jpg 03.jpg\r\n"}
    folder = folder_of(tmp_path, files | lists)
    found = find_entries(folder, Layout.VITON_HD).entries
    assert {entry.name: entry.problem for entry in found} == {
        "01": "",
        "01__02": "",
        "02__03": "missing: 03.jpg",
    }
    assert found[1].garments == ((folder / "cloth/02.jpg").resolve(),)
    (folder / "test_pairs.txt").write_text("../../x.jpg 01.jpg\nalone\n")
    with pytest.raises(vtryon.RequestError, match=r"test_pairs\.txt, line 2"):
        find_entries(folder, Layout.VITON_HD)


def test_the_layout_of_dresscode(tmp_path: Path) -> None:
    images = "upper_body/images"
    files = {f"{images}/00{number}_{part}.jpg": PICTURE for number in (1, 2) for part in (0, 1)}
    lists = {
        "upper_body/test_pairs_paired.txt": b"001_0.jpg\t001_1.jpg\n",
        "upper_body/test_pairs_unpaired.txt": b"001_0.jpg\t002_1.jpg\n",
    }
    found = find_entries(folder_of(tmp_path, files | lists), Layout.DRESSCODE).entries
    assert [entry.name for entry in found] == ["upper_body-001_0", "upper_body-001_0__002_1"]
    assert not any(entry.problem for entry in found)


@pytest.mark.parametrize(
    ("layout", "files", "problems"),
    [
        (
            Layout.VITON_HD,
            ["image/1.jpg", "cloth/1.png", "cloth/2.jpg", "image/3.jpg", "image/.DS_Store"],
            {"1": "", "2": "no person; missing: 2.jpg", "3": "missing: 3.jpg"},
        ),
        (
            Layout.DRESSCODE,
            ["images/1_0.jpg", "images/1_1.png", "images/2_1.jpg", "images/3_0.jpg"],
            {"1_0": "", "2_0": "no person; missing: 2_0.jpg", "3_0": "missing: 3_1.jpg"},
        ),
    ],
)
def test_without_lists_a_garment_without_a_person_is_named(
    tmp_path: Path, layout, files, problems
) -> None:
    found = find_entries(folder_of(tmp_path, dict.fromkeys(files, PICTURE)), layout)
    assert {entry.name: entry.problem for entry in found.entries} == problems
    assert found.unused == []


def test_files_of_a_data_set_that_no_list_names_are_named(tmp_path: Path) -> None:
    files = dict.fromkeys(["image/1.jpg", "cloth/1.jpg", "cloth/2.jpg"], PICTURE)
    folder = folder_of(tmp_path, {**files, "test_pairs.txt": b"1.jpg 1.jpg\n"})
    assert find_entries(folder, Layout.VITON_HD).unused == ["cloth/2.jpg"]


def test_a_source_without_entries_is_an_error_that_tells_the_layouts(tmp_path: Path) -> None:
    files = ["image/1.jpg", "cloth/1.jpg", "test_pairs.txt"]
    viton = batch(folder_of(tmp_path, dict.fromkeys(files, PICTURE)), tmp_path / "out")
    assert viton.returncode == 2
    assert "this looks like --layout viton-hd" in viton.stderr
    assert "NAME/person.png" in viton.stderr


def rows_of(tmp_path: Path, text: bytes) -> list:
    for name in ("p.png", "g.png"):
        (tmp_path / name).write_bytes(PICTURE)
    (tmp_path / "work.csv").write_bytes(text)
    return find_entries(tmp_path / "work.csv").entries


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "text",
    [
        'name,person,garments,prompt,true_cfg_scale\r\n"é",p.png,g.png,"a;b",2.5\r\n',
        'name;person;garments;prompt;true_cfg_scale;;\r\né;p.png;"g.png";"a;b";2,5;;\r\n;;;;;;\r\n',
        "sep=\t\nname\tperson\tgarments\tprompt\ttrue_cfg_scale\né\tp.png\tg.png\ta;b\t2.5\n\n",
    ],
)
def test_csv_in_the_dialects_of_spreadsheets(tmp_path: Path, text: str, encoding: str) -> None:
    [entry] = rows_of(tmp_path, text.encode(encoding))
    assert (entry.name, len(entry.garments)) == ("é", 1)
    assert entry.options == {"prompt": "a;b", "true_cfg_scale": 2.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,person,stepz\n1,p.png,3\n", "line 1: unknown 'stepz'"),
        ("person,person\np.png,p.png\n", "line 1: two columns person"),
        ("person,\np.png,lost\n", "line 2: cell 2 is in a column without a name"),
        ("person\np.png,lost\n", "line 2: cell 2 is in a column without a name"),
        ("person,steps\n\np.png,2.9\n", r"line 3: steps: '2\.9' is not a whole number"),
        ('person,prompt\np.png,"a\nb\n', "line 4: unexpected end of data"),
    ],
)
def test_csv_that_does_not_hold_is_refused_with_its_line(tmp_path: Path, text, words) -> None:
    with pytest.raises(vtryon.RequestError, match=words):
        rows_of(tmp_path, text.encode())


def test_an_empty_cell_is_not_given_and_a_space_is_a_negative_prompt(tmp_path: Path) -> None:
    header = "name,person,garments,negative_prompt,steps,\n"
    rows = 'empty,p.png,g.png,,,\nquoted,p.png,g.png,"", ,\nspace,p.png,g.png," ",, \n'
    found = {entry.name: entry.options for entry in rows_of(tmp_path, (header + rows).encode())}
    assert found == {"empty": {}, "quoted": {}, "space": {"negative_prompt": " "}}


def test_an_absolute_path_is_taken_from_a_manifest_and_an_empty_prompt_is_one(tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "p.png").write_bytes(PICTURE)
    manifest = tmp_path / "work.jsonl"
    row = {"person": str(elsewhere / "p.png"), "negative_prompt": "", "prompt": None}
    manifest.write_text(json.dumps(row), encoding="utf-8-sig")
    [entry] = find_entries(manifest).entries
    assert entry.person == (elsewhere / "p.png").resolve()
    assert entry.options == {"negative_prompt": ""}


def test_results_of_another_model_are_drawn_anew(
    pairs: Path, tmp_path: Path, endpoint: str
) -> None:
    out = tmp_path / "out"
    words = ["--steps", "1", "--seed", "3", "--endpoint", endpoint]
    assert batch(pairs, out, *words).returncode == 0
    lines = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]
    assert lines[0]["digests"]["sampling"]
    for line in lines:
        if line["name"] in {"a1", "b2"}:
            line["digests"]["sampling"] = "another"
    (out / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("??.png")}
    assert batch(pairs, out, *words).returncode == 0
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("??.png")}
    assert {name for name in before if before[name] != after[name]} == {"a1.png", "b2.png"}


def test_results_of_other_options_are_no_results_of_a_run_that_was_ended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    entry = BatchEntry("a", tmp_path / "p.png", ())
    Journal.open(out).write(JournalLine("a", "another key", "a.png", seed=1))
    journal = Journal.open(out)
    report = _report(Found([entry]), journal, out)
    assert (report["succeeded"], report["missing"], report["results"]) == (0, 1, [])
    journal.confirm("a")
    assert _report(Found([entry]), journal, out)["succeeded"] == 1  # its picture is gone: no sheet


def test_an_entry_that_can_not_be_done_is_in_the_report(tmp_path: Path, endpoint: str) -> None:
    names = ["a/person.png", "a/garment.png", "b/person.heic", "b/garment.png", "b/shirt.txt"]
    folder, out = folder_of(tmp_path, dict.fromkeys(names, PICTURE)), tmp_path / "out"
    done = batch(folder, out, "--steps", 1, "--endpoint", endpoint, "--json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["entries"], report["succeeded"], report["failed"]) == (2, 1, 1)
    assert report["results"][1]["message"].startswith("'person.heic' is not a PNG")
    assert report["unused"] == ["b/shirt.txt"]
    (folder / "a/person.png").unlink()
    none = batch(folder, tmp_path / "none", "--steps", 1, "--endpoint", endpoint)
    assert none.returncode == 2
    assert "no person; there are 'garment.png'" in none.stderr


def test_many_entries_are_found_and_too_many_refused(tmp_path: Path, monkeypatch) -> None:
    manifest = tmp_path / "work.jsonl"
    (tmp_path / "p.png").write_bytes(PICTURE)
    rows = [json.dumps({"person": "p.png", "name": f"n{number}"}) for number in range(100_000)]
    manifest.write_text("\n".join(rows))
    assert len(find_entries(manifest).entries) == 100_000
    monkeypatch.setattr("vtryon.batch.entries.MAX_ENTRIES", 10)
    manifest.write_text("\n".join(rows[:11]))
    with pytest.raises(vtryon.RequestError, match="a batch takes 10"):
        find_entries(manifest)
    manifest.write_text("\n".join(rows[:2] + rows[:1]))
    with pytest.raises(vtryon.RequestError, match="two entries"):
        find_entries(manifest)


def test_killed_it_goes_on_where_it_was(tmp_path: Path, endpoint: str) -> None:
    manifest, out = tmp_path / "work.jsonl", tmp_path / "out"
    (tmp_path / "p.png").write_bytes(PICTURE)
    rows = [json.dumps({"person": "p.png", "name": f"n{number:02}"}) for number in range(40)]
    manifest.write_text("\n".join(rows))
    words = ["--steps", "4", "--concurrency", "4", "--endpoint", endpoint]
    made: dict[str, int] = {}
    for kills in range(3):
        process = subprocess.Popen(
            [VTRYON, "batch", manifest, out, *words], stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 30
        while time.monotonic() < until and len(list(out.glob("n*.png"))) < 6 * (kills + 1):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in out.glob("n*.png"):
            with Image.open(path) as picture:
                picture.load()  # nothing is half-written
        lines = (out / JOURNAL).read_bytes().decode().splitlines()
        for line in lines:
            told = json.loads(line)
            made.setdefault(told["name"], (out / told["out"]).stat().st_mtime_ns)
    with (out / JOURNAL).open("a") as journal:
        journal.write('{"name": "n39", "half')  # as a machine that lost power
    done = batch(manifest, out, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["succeeded"] == 40
    for name, moment in made.items():
        assert (out / f"{name}.png").stat().st_mtime_ns == moment  # nothing is done twice
    assert not [path for path in out.glob(".n*.part") if path.stat().st_mtime > time.time() - 1]


def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path, endpoint: str) -> None:
    manifest, out = tmp_path / "work.jsonl", tmp_path / "out"
    (tmp_path / "p.png").write_bytes(PICTURE)
    rows = [json.dumps({"person": "p.png", "name": f"n{number}"}) for number in range(4)]
    manifest.write_text("\n".join(rows))

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))

    full = batch(manifest, out, "--steps", 1, "--endpoint", endpoint, preexec_fn=small_files)
    assert full.returncode == 2
    assert "can't write" in full.stderr
    assert not list(out.glob("n*.png"))
    done = batch(manifest, out, "--steps", 1, "--endpoint", endpoint)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("n*.png"))) == 4


HALVES = [
    ("work.jsonl", '{"person": "p.png", "name": "a"}\n{"person": "p.p', ["a"]),
    (
        "work.jsonl",
        '{"person": "p.png", "name": "a"}\n{"person": "p.png", "name": "b"}',
        ["a", "b"],
    ),
    ("work.jsonl", '{"per', []),
    ("work.csv", "name,person\na,p.png\nb,p.p", ["a"]),
    ("work.csv", "name,per", []),
    ("work.csv", 'name,person,prompt\na,p.png,"x"\nb,p.png,"one\ntwo', ["a"]),
    ("work.jsonl", '{"person": "p.png", "name": "a"}\n{"prompt": "é'.encode()[:-1], ["a"]),
]


@pytest.mark.parametrize(("name", "written", "found"), HALVES)
def test_half_a_line_of_a_watched_manifest_is_left_for_later(
    tmp_path: Path, name: str, written: str | bytes, found: list[str]
) -> None:
    manifest = tmp_path / name
    manifest.write_bytes(written if isinstance(written, bytes) else written.encode())
    assert [entry.name for entry in find_entries(manifest, growing=True).entries] == found


def test_half_a_line_of_a_list_of_pairs_is_left_for_later(tmp_path: Path) -> None:
    files = {"image/1.jpg": PICTURE, "cloth/1.jpg": PICTURE, "train_pairs.txt": b"1.jpg 1.jpg\n2.j"}
    folder = folder_of(tmp_path, files)
    with pytest.raises(vtryon.RequestError, match="line 2"):
        find_entries(folder, Layout.VITON_HD)
    [entry] = find_entries(folder, Layout.VITON_HD, growing=True).entries
    assert entry.name == "1"


@pytest.mark.parametrize("layout", ["viton-hd", "dresscode"])
def test_a_data_set_without_pairs_ends_a_batch_and_not_a_watch(tmp_path: Path, layout: str) -> None:
    assert find_entries(tmp_path, Layout(layout), growing=True) == Found([])
    done = batch(tmp_path, tmp_path / "out", "--layout", layout)
    assert done.returncode == 2
    assert "has no entries" in done.stderr


def wait_for_file(path: Path, process: subprocess.Popen[str], until: float) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_watched_data_set_may_begin_empty(tmp_path: Path, endpoint: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    words = ["--watch", "--layout", "viton-hd", "--steps", "1", "--endpoint", endpoint]
    with subprocess.Popen(
        [VTRYON, "batch", source, out, *words], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until = time.monotonic() + 100
            wait_for_file(out / JOURNAL, process, until)  # it has looked once
            for part in ("image", "cloth"):
                (source / part).mkdir()
                (source / part / "1.png").write_bytes(PICTURE)
            wait_for_file(out / "1.png", process, until)
        finally:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said


def test_watching_takes_what_comes(tmp_path: Path, endpoint: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    command = [VTRYON, "batch", source, out, "--watch", "--steps", "1", "--endpoint", endpoint]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for number in range(2):
            (source / f"x{number}_garment.png").write_bytes(PICTURE)
            (source / f"x{number}_person.png").write_bytes(PICTURE)
            until = time.monotonic() + 100
            wait_for_file(out / f"x{number}.png", process, until)
            while f'"x{number}"' not in (out / JOURNAL).read_text():  # behind its picture
                assert time.monotonic() < until
                time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert json.loads((out / "report.json").read_text())["succeeded"] == 2


def test_an_unterminated_last_row_is_reported_when_watching_ends(
    tmp_path: Path, endpoint: str
) -> None:
    source, out = tmp_path / "work.csv", tmp_path / "out"
    (tmp_path / "p.png").write_bytes(PICTURE)
    source.write_text("name,person\na,p.png\nb,p.png")
    command = [VTRYON, "batch", source, out, "--watch", "--steps", "1", "--endpoint", endpoint]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for_file(out / "a.png", process, time.monotonic() + 100)
        finally:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    report = json.loads((out / "report.json").read_text())
    assert (report["entries"], report["missing"]) == (2, 1)
    assert "1 to be done" in said
