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
from vtryon.batch.entries import find_entries
from vtryon.batch.journal import NAME as JOURNAL

PICTURE = png()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with served(
        *("all", "--backend", "scripted"),
        VTRYON_SAMPLING_SCRIPTED_SECONDS="0.02",
        VTRYON_SAMPLING_PLACES="4",
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
    "an absolute path": {"person": "/etc/passwd"},
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
    with pytest.raises(vtryon.RequestError, match="line 2"):
        find_entries(manifest)


def test_a_folder_is_not_left_by_links_and_devices_are_no_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    (tmp_path / "p.png").write_bytes(PICTURE)
    os.mkfifo(folder / "x_person.png")
    (folder / "x_garment.png").write_bytes(PICTURE)
    [entry] = find_entries(folder)
    with pytest.raises(vtryon.RequestError, match="no plain file"):
        entry.key({})
    (folder / "y_person.png").symlink_to(tmp_path / "p.png")
    (folder / "y_garment.png").write_bytes(PICTURE)
    with pytest.raises(vtryon.RequestError, match="leads out"):
        find_entries(folder)


def test_many_entries_are_found_and_too_many_refused(tmp_path: Path, monkeypatch) -> None:
    manifest = tmp_path / "work.jsonl"
    (tmp_path / "p.png").write_bytes(PICTURE)
    rows = [json.dumps({"person": "p.png", "name": f"n{number}"}) for number in range(100_000)]
    manifest.write_text("\n".join(rows))
    assert len(find_entries(manifest)) == 100_000
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
    assert full.returncode == 1
    assert "can't write" in full.stderr
    assert not list(out.glob("n*.png"))
    done = batch(manifest, out, "--steps", 1, "--endpoint", endpoint)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("n*.png"))) == 4


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
            while not (out / f"x{number}.png").exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < until
                time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert json.loads((out / "report.json").read_text())["succeeded"] == 2
