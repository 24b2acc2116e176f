"""No bad checkpoint loads, draws or ends in a traceback: one sentence names what is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.broken_checkpoints import BROKEN
from tests.support.processes import VTRYON

from vtryon.errors import SettingsError
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.latent_encoder import VaeEncoder
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.sampler import Sampler
from vtryon_services.engine.text_encoder import PromptEncoder

CPU = Placement.of("cpu", "fp32")
# Commands take longer: one broken checkpoint in three, by the one command or by the other.
TRIED_ON, SERVED = list(BROKEN)[::6], list(BROKEN)[3::6]
# The command many times in one process: a process of its own each would take minutes.
_RUN_MANY = """
import contextlib, io, json, sys
from vtryon.cli.app import run
for line in sys.stdin:
    sys.argv = ["vtryon", *json.loads(line)]
    out, error, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            run()
        except SystemExit as end:
            code = end.code
        except BaseException as failure:
            code = repr(failure)
    print(json.dumps([code, out.getvalue(), error.getvalue()]), flush=True)
"""


class Ran(NamedTuple):
    """How a command ended."""

    code: int | str | None
    out: str
    error: str


def run_many(commands: list[list[str]], folder: Path) -> list[Ran]:
    done = subprocess.run(
        [sys.executable, "-c", _RUN_MANY],
        input="".join(json.dumps(command) + "\n" for command in commands),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [Ran(*json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each broken checkpoint is called by."""
    named = {}
    for number, (name, broken) in enumerate(BROKEN.items()):
        own = tmp_path_factory.mktemp("broken") / str(number)
        copy = shutil.copytree(SHIPPED_CHECKPOINT, own / "checkpoint")
        (copy / "digests.json").unlink()
        named[name] = broken.make(copy) or copy
    return named


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with person.png and garment.png."""
    from vtryon_services.mannequin.triples import held_out

    folder = tmp_path_factory.mktemp("pictures")
    example = held_out(0)
    example.person.save(folder / "person.png")
    example.garment.save(folder / "garment.png")
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_it_is_refused_by_name_when_it_is_loaded(folders, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        for stage in (Sampler, VaeEncoder, PromptEncoder, Decoder):
            stage.load(Checkpoint.open(folders[name]), CPU)
    assert caught.value.reason == BROKEN[name].reason, caught.value.message
    check_sentence(caught.value.message, name, folders[name])


@pytest.fixture(scope="module")
def tried_on(folders: dict[str, Path], examples: Path) -> dict[str, Ran]:
    options = ["--steps", "1", "--json", "-o", "out.png", "--checkpoint"]
    commands = [
        ["try-on", "person.png", "garment.png", *options, str(folder)]
        for folder in map(folders.get, TRIED_ON)
    ]
    return dict(zip(TRIED_ON, run_many(commands, examples), strict=True))


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], examples: Path) -> dict[str, Ran]:
    options = ["--listen", "127.0.0.1:0", "--checkpoint"]
    stages = ["latent-encoder", "text-encoder", "sampling", "decoding"]
    commands = [["serve", *stages, *options, str(folder)] for folder in map(folders.get, SERVED)]
    return dict(zip(SERVED, run_many(commands, examples), strict=True))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TRIED_ON)
def test_a_try_on_ends_with_one_sentence_and_without_a_picture(
    tried_on, folders, examples, name: str
) -> None:
    code, out, error = tried_on[name]
    assert code == 2, (code, out, error)
    assert out, error
    said = json.loads(out)["error"]
    assert said["reason"] == BROKEN[name].reason, said
    check_sentence(said["message"], name, folders[name])
    assert "Traceback" not in error
    assert not (examples / "out.png").exists()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SERVED)
def test_serving_ends_with_one_sentence(served, folders, name: str) -> None:
    code, out, error = served[name]
    assert code == 2, (code, out, error)
    assert "Traceback" not in out + error
    check_sentence(" ".join(error.split()).partition("error: ")[2], name, folders[name])


def check_sentence(message: str, name: str, folder: Path) -> None:
    for word in BROKEN[name].words:
        assert word in message, message
    assert "\n" not in message
    assert str(folder.parent) not in message or str(folder.parent) == "org"


def test_the_command_itself_ends_so_too(folders, examples) -> None:
    command = [VTRYON, "serve", "sampling", "--listen", "127.0.0.1:0", "--checkpoint"]
    done = subprocess.run([*command, folders["scaled fp8"]], capture_output=True, text=True)
    assert done.returncode == 2
    assert "scale_weight" in "".join(done.stderr.split())
    assert "Traceback" not in done.stderr
