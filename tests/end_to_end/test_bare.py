"""Each shell block of the documents runs in an environment with just the extras that it names.

A block is one bash script, run as it stands but for what this machine does not have (`HERE`). It
has a network and processes of its own, so that it may take their ports, and leaves nothing.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.sdk.test_workflow import api_graph
from tests.support.documents import Block, shell_blocks
from tests.support.environments import CLEAN, ROOT, make_environment, run

pytestmark = [
    pytest.mark.bare,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own takes root"),
]
DEV = Path(sys.executable).parent
TRY = "vtryon try-on person.png garment.png -o tried.png --steps 1 --endpoint 127.0.0.1:50050"
# What the reader's machine has and this one does not, or what would never end.
HERE = {
    "/models/Qwen-Image-Edit-2511": str(ROOT / "services/vtryon_services/mannequin/checkpoint"),
    " --device cuda --dtype bf16": "",
    "=broker:9092": "=127.0.0.1:9092",
    "http://registry:8081": "http://127.0.0.1:8081",
    "vtryon batch inbox": "timeout -s INT 25 vtryon batch inbox",
    "results --watch": "results --watch ||:",
    "vtryon dlq show jobs 17": "vtryon dlq show jobs 17 ||:",
    "vtryon up": "try_up",
    "serve pipeline --topology ensemble &": "serve pipeline --topology ensemble "
    "--listen 127.0.0.1:50060 &",
    "DECODING_TARGET=127.0.0.1:50051 vtryon serve pipeline": "DECODING_TARGET=127.0.0.1:50051 "
    "VTRYON_PIPELINE_SAMPLING_TARGET=127.0.0.1:50053 vtryon serve pipeline & " + TRY,
}
# Run before or behind a block that holds the key: what it takes for granted, and what shows it.
BEFORE = {
    "vtryon batch": "vtryon serve all &",
    "buf curl": f"vtryon serve all & {TRY}",
    "vtryon serve kafka": f"{DEV}/vtryon kafka broker & {DEV}/vtryon kafka registry & sleep 4",
}
AFTER = {
    "--backend triton": f"{TRY}; {TRY.replace('50050', '50060')}",
    "vtryon serve kafka": TRY,
    "vtryon serve pipeline": TRY,
}
PRELUDE = """
ip link set lo up
# A server may still start; and an answer that is an error is one.
curl() { command curl -sS --fail --retry 60 --retry-all-errors --retry-delay 1 "$@"; }
try_up() {
    vtryon up "$@" > up.log 2>&1 & up=$!
    until grep -q "^try: " up.log; do
        kill -0 $up 2>/dev/null || { cat up.log; return 1; }
        sleep 0.3
    done
    eval "$(sed -n 's/^try: //p' up.log)"
    kill -INT $up; wait $up
}
command -v grpcurl >/dev/null || grpcurl() { :; }
set -x
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file that the blocks read."""
    folder = tmp_path_factory.mktemp("drawn")
    run(DEV / "vtryon", "example-pair", "--seed", "3", "--out", folder, cwd=folder)
    for place in ("pairs/anna", "inbox/anna"):
        (folder / place).mkdir(parents=True)
        for name in ("person.png", "garment.png"):
            shutil.copy(folder / name, folder / place / name)
    (folder / "work.csv").write_text("name,person,garments\nanna,person.png,garment.png\n")
    (folder / "request.json").write_text(json.dumps({"prompt": "wear it", "steps": 1}))
    (folder / "graph.json").write_text(json.dumps(api_graph()))
    return folder


Environment = Callable[[tuple[str, ...]], Path]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """Makes environments, one for each set of extras; gives their bin folders."""
    folder = tmp_path_factory.mktemp("environments")
    made: dict[tuple[str, ...], Path] = {}

    def make(extras: tuple[str, ...]) -> Path:
        if extras not in made:
            place = folder / "-".join(extras)
            made[extras] = make_environment(place, f"{wheel}[{','.join(extras)}]")
        return made[extras]

    yield make
    shutil.rmtree(folder)


def script_of(block: Block) -> str:
    lines = "\n".join(block.lines)
    for said, here in HERE.items():
        lines = lines.replace(said, here)
    before = [line for words, line in BEFORE.items() if words in lines]
    after = [line for words, line in AFTER.items() if words in lines]
    return "\n".join([PRELUDE, *before, lines, *after])


@pytest.mark.parametrize("block", shell_blocks(), ids=lambda block: block.name)
def test_a_block_of_the_documents_runs_with_its_extras_alone(
    block: Block, environment: Environment, drawn: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(drawn, work)
    (work / ".triton").symlink_to(ROOT / ".triton")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "buf").symlink_to(DEV / "buf")
    bin_folder = environment(block.extras or ("server",))
    apart = ("unshare", "--net", "--pid", "--fork", "--kill-child")
    done = subprocess.run(
        [*apart, "bash", "-euo", "pipefail", "-c", script_of(block)],
        cwd=work,
        env={**CLEAN, "PATH": f"{bin_folder}:{tools}:/usr/sbin:/usr/bin:/sbin:/bin"}
        | {"HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "Traceback" not in done.stdout
