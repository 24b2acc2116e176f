"""A repository of a model hub as a checkpoint: a small hub on this machine."""

import shutil
import sys

import pytest
from huggingface_hub import constants
from tests.support.fake_hub import COMMIT, fake_hub

from vtryon.checkpoint_source import ComfyFolder, HubRepository, parse_source
from vtryon.errors import Reason, SettingsError
from vtryon_services.checks import _checkpoint
from vtryon_services.engine import content, hub
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, STAGE_PARTS, Checkpoint
from vtryon_services.engine.comfyui import _find_tokenizer

NAME = HubRepository("org/name")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The shipped checkpoint on a hub, beside files that nothing uses; an empty cache."""
    folder = shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "repository")
    (folder / "lora.safetensors").write_bytes(b"never fetched")
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"never fetched")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub, "_found", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "digests"))
    with fake_hub(folder) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        url = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        yield found


def refused(source: HubRepository) -> str:
    with pytest.raises(SettingsError) as caught:
        Checkpoint.open(source)
    assert caught.value.reason is Reason.CHECKPOINT_NOT_FOUND
    assert "\n" not in caught.value.message
    return caught.value.message


def test_sources_are_read_as_written() -> None:
    assert parse_source("hf://org/name") == NAME
    assert parse_source("hf://org/name@v1.0/x") == HubRepository("org/name", "v1.0/x")
    for text in ("hf://org/name", "hf://org/name@abc", "/models/mine", "org/name"):
        assert str(parse_source(text)) == text


@pytest.mark.parametrize("text", ["hf://", "hf://name", "hf://a/b/c", "hf://../b", "hf://a/b@", 5])
def test_other_names_are_refused(text) -> None:
    with pytest.raises(SettingsError, match="hf://org/name"):
        parse_source(text)


def test_only_used_files_are_downloaded_and_once(served, monkeypatch) -> None:
    found = Checkpoint.open(NAME)
    used = {*served.fetched}
    assert {"model_index.json", "transformer/diffusion_pytorch_model.safetensors"} <= used
    assert not {"lora.safetensors", "vae/diffusion_pytorch_model.bin", "README.md"} & used
    shipped = Checkpoint.open(SHIPPED_CHECKPOINT)
    for stage in STAGE_PARTS:
        assert found.digest(stage) == shipped.digest(stage)
    assert found.location == f"hf://org/name@{COMMIT}"
    served.error = (500, "Broken")
    Checkpoint.open(NAME)
    assert len(served.fetched) == len(used)


def test_a_later_start_neither_downloads_nor_hashes(served, monkeypatch) -> None:
    monkeypatch.setattr(content, "_SETTLED_SECONDS", -1)
    first = {stage: Checkpoint.open(NAME).digest(stage) for stage in STAGE_PARTS}
    count = len(served.fetched)
    monkeypatch.setattr(hub, "_found", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(content, "sha256_of", None)
    for source in (NAME, HubRepository("org/name", COMMIT)):
        assert first == {stage: Checkpoint.open(source).digest(stage) for stage in STAGE_PARTS}
    assert len(served.fetched) == count
    assert _checkpoint("hf://org/name").ok


def test_an_interrupted_download_is_named_offline_and_goes_on_online(served, monkeypatch) -> None:
    folder = Checkpoint.open(NAME).folder
    (folder / "vae" / "config.json").unlink()
    monkeypatch.setattr(hub, "_found", {})
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "not whole in the hub's cache" in refused(NAME)
        assert not _checkpoint("hf://org/name").ok
    Checkpoint.open(NAME)


def test_what_is_not_there_is_refused_by_name(served, monkeypatch) -> None:
    assert "no such revision" in refused(HubRepository("org/name", "other"))
    served.error = (401, "RepoNotFound")
    assert "not on the hub, or is private" in refused(NAME)
    served.error = (403, "GatedRepo")
    assert "accept its terms" in refused(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "hub can't be reached: unset HF_HUB_OFFLINE" in refused(NAME)
    assert "first start downloads it" in _checkpoint("hf://org/name").remedy


def test_a_tokenizer_is_downloaded_alone(served, tmp_path) -> None:
    source = ComfyFolder(tmp_path, (("tokenizer", "hf://org/name"),))
    for _ in range(2):
        assert (_find_tokenizer(source) / "tokenizer.json").is_file()
    assert sorted(served.fetched) == ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]


def test_a_repository_of_another_layout_is_refused(served) -> None:
    (served.folder / "model_index.json").unlink()
    assert "hf://org/name has no model_index.json" in refused(NAME)


def test_an_absent_client_is_said_with_its_extra(monkeypatch) -> None:
    monkeypatch.setattr(hub, "_found", {})
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SettingsError, match=r"huggingface_hub.*vtryon\[server\]"):
        hub.snapshot(NAME)
