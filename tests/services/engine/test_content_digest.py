"""A digest is of a file's content, whatever its size, times and name say."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vtryon.types import Stage
from vtryon_services.engine import content
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.content import content_digest

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and files that count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_SETTLED_SECONDS", -1.0)
    return tmp_path / "cache" / "vtryon" / "digests"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was read."""
    read: list[Path] = []
    whole = content.sha256_of
    monkeypatch.setattr(content, "sha256_of", lambda path: read.append(path) or whole(path))
    return read


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once_and_again_when_it_has_changed(cache, counted, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert [content_digest(path) for _ in range(3)] == [sha256(b"one")] * 3
    assert len(counted) == 1
    path.write_bytes(b"two")
    assert content_digest(path) == sha256(b"two")


def test_times_that_were_set_back_hide_nothing(cache, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    seen = path.stat()
    content_digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert content_digest(path) == sha256(b"two")


def test_a_file_that_has_just_changed_is_not_remembered(cache, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(content, "_SETTLED_SECONDS", 3600.0)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    content_digest(path)
    assert not cache.exists()


def test_links_to_one_file_share_a_digest(cache, counted, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert content_digest(tmp_path / "link") == content_digest(tmp_path / "file")
    assert len(counted) == 1


@pytest.mark.parametrize("spoilt", [b"", b"{", b"[]", b'{"sha256": "a"}', b'{"sha256": 7}'])
def test_a_spoilt_entry_is_passed_over_and_replaced(cache, tmp_path, spoilt: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    content_digest(path)
    [entry] = cache.iterdir()
    entry.write_bytes(spoilt)
    assert content_digest(path) == sha256(b"one")
    assert sha256(b"one").encode() in entry.read_bytes()


def test_a_cache_that_cannot_be_written_costs_time_alone(monkeypatch, tmp_path) -> None:
    (tmp_path / "no-folder").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-folder"))
    (tmp_path / "file").write_bytes(b"one")
    assert content_digest(tmp_path / "file") == sha256(b"one")


def test_many_at_once_get_the_right_one_and_leave_no_scratch(cache, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one" * 100_000)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(content_digest(path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {sha256(b"one" * 100_000)}
    assert len(list(cache.iterdir())) == 1


def other_weights(folder: Path) -> None:
    """The same names, shapes, types and size: only numbers differ."""
    tensors = load_file(folder / WEIGHTS)
    tensors["proj_out.bias"] = tensors["proj_out.bias"] + 1
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("listed", [True, False])
def test_weights_of_equal_shapes_have_digests_of_their_own(tmp_path, listed: bool) -> None:
    """Whether digests.json says so or not: what it lists is not taken on trust."""
    copy = shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "checkpoint")
    before = Checkpoint.open(copy).digest(Stage.SAMPLING)
    size = (copy / WEIGHTS).stat().st_size
    other_weights(copy)
    assert (copy / WEIGHTS).stat().st_size == size
    if not listed:
        (copy / "digests.json").unlink()
    assert Checkpoint.open(copy).digest(Stage.SAMPLING) != before


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("scheduler/scheduler_config.json", Stage.SAMPLING),
        ("transformer/config.json", Stage.SAMPLING),
        ("geometry.json", Stage.SAMPLING),
        ("geometry.json", Stage.DECODING),
        ("vae/config.json", Stage.LATENT_ENCODER),
        ("vae/config.json", Stage.DECODING),
        ("tokenizer/tokenizer.json", Stage.TEXT_ENCODER),
        ("processor/processor_config.json", Stage.TEXT_ENCODER),
        ("text_encoder/config.json", Stage.TEXT_ENCODER),
        ("geometry.json", Stage.TEXT_ENCODER),
    ],
)
def test_whatever_decides_a_result_is_in_the_digest(tmp_path, file: str, stage: Stage) -> None:
    copy = shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "checkpoint")
    before = Checkpoint.open(copy).digest(stage)
    if file == "geometry.json":
        text = (copy / file).read_text().replace("262144", "262145")
    else:
        text = (copy / file).read_text() + " "
    (copy / file).write_text(text)
    assert Checkpoint.open(copy).digest(stage) != before


def test_what_changes_no_result_is_not_in_the_digest(tmp_path) -> None:
    copy = shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "checkpoint")
    (copy / "README.md").write_text("another card")
    (copy / "text_encoder" / "generation_config.json").write_text("{}")
    for stage in (Stage.TEXT_ENCODER, Stage.SAMPLING):
        shipped = Checkpoint.open(SHIPPED_CHECKPOINT).digest(stage)
        assert Checkpoint.open(copy).digest(stage) == shipped
