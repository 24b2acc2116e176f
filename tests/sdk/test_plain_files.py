"""Files that a caller names are read if they are regular and not too large, by every way in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import vtryon
from vtryon.cli import files
from vtryon.cli.files import load_tensors
from vtryon.errors import Reason, RequestError, SettingsError
from vtryon.files.regular import MAX_PEM_BYTES, read_pem, read_regular
from vtryon.files.tensors import only_latents
from vtryon.files.text import read_text
from vtryon.pictures import read_picture
from vtryon_mesh.description import Mesh
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.rpc.serve import Server

pytestmark = pytest.mark.timeout(60)


def serve_with(certificate: Path) -> None:
    settings = PipelineSettings.load(tls_certificate_path=certificate, tls_key_path=certificate)
    Server(settings).bind("127.0.0.1:0")


WAYS: dict[str, Callable[[Path], object]] = {
    "tensors": load_tensors,
    "picture": read_picture,
    "text": read_text,
    "description of a mesh": Mesh.load,
    "authorities of a client": lambda path: vtryon.Channel(
        "localhost:1", tls=vtryon.Tls(ca_path=path)
    ),
    "certificate of a server": serve_with,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["pipe", "zero", "."])
async def test_a_pipe_a_device_and_a_folder_are_refused_and_not_waited_for(
    way: str, name: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises((RequestError, SettingsError), match="not a regular file"):
        WAYS[way](tmp_path / name)


def test_a_larger_file_is_read_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1024**4)
    assert len(read_regular(path, 10)) == 11
    with pytest.raises(OSError, match=f"more than {MAX_PEM_BYTES} bytes"):
        read_pem(path)
    monkeypatch.setattr(files, "MAX_TENSORS_BYTES", 1000)
    with pytest.raises(RequestError, match="more than 1000 bytes") as caught:
        load_tensors(path)
    assert caught.value.reason is Reason.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize("name", ["latents", "latents_1"])
def test_a_file_with_one_tensor_is_decoded_and_another_one_is_refused(
    name: str, tmp_path: Path
) -> None:
    latents = np.zeros((16, 4, 4), np.float32)
    save_file({name: latents}, tmp_path / "one.safetensors")
    assert only_latents(load_tensors(tmp_path / "one.safetensors")).spec.shape == (16, 4, 4)
    save_file({name: latents, "latents_2": latents, "mask": latents}, tmp_path / "more.safetensors")
    with pytest.raises(RequestError, match="latents_2, mask, which would not be used"):
        only_latents(load_tensors(tmp_path / "more.safetensors"))
