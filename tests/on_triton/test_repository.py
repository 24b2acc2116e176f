"""A model repository is rendered from a checkpoint; what is committed is what would be rendered."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.processes import VTRYON
from tests.support.triton import ROOT, export_shipped

from vtryon_services.triton.contract import contracts


def run(*arguments: str) -> tuple[int, str]:
    import subprocess

    done = subprocess.run([VTRYON, *arguments], capture_output=True, text=True, timeout=200)
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def test_the_committed_repository_is_current(tmp_path: Path) -> None:
    rendered, committed = export_shipped(tmp_path / "fresh"), ROOT / "services" / "model_repository"
    names = [path.relative_to(rendered) for path in rendered.rglob("*") if path.is_file()]
    assert len(names) == 2 * 5 + 3 + 1  # the encoders' first requests bring files
    for name in names:
        assert (committed / name).read_bytes() == (rendered / name).read_bytes(), (
            f"{name} is not current: rm -r services/model_repository; "
            "vtryon models export-triton services/model_repository"
        )


def test_models_are_thin_and_every_tensor_is_described(tmp_path: Path) -> None:
    folder = export_shipped(tmp_path / "fresh")
    readme = (folder / "README.md").read_text()
    for contract in contracts(16, 128):
        if not contract.steps:
            shell = (folder / contract.model.value / "1" / "model.py").read_text()
            assert len(shell.splitlines()) < 60
        for one in (*contract.inputs, *contract.outputs, *contract.parameters):
            assert f"`{one.name}`" in readme


def test_options_come_through(tmp_path: Path) -> None:
    options = {
        "slots": 8,
        "batch": 4,
        "gpus": (0, 2),
        "instances": 3,
        "response_cache": True,
        "priorities": 2,
    }
    folder = export_shipped(tmp_path / "gpu", device="cuda", dtype="bf16", **options)
    sampling = (folder / "sampling" / "config.pbtxt").read_text()
    assert "KIND_GPU" in sampling
    assert 'string_value: "bf16"' in sampling
    assert 'string_value: "8"' in sampling
    encoder = (folder / "latent_encoder" / "config.pbtxt").read_text()
    assert "max_batch_size: 4" in encoder
    group = re.search(r"instance_group {(.*?)}", encoder, re.DOTALL).group(1)
    assert group.split() == ["count:", "3", "gpus:", "0", "gpus:", "2", "kind:", "KIND_GPU"]
    assert "response_cache {\n  enable: true" in encoder
    assert "model_warmup" in encoder
    assert "priority_levels: 2" in encoder
    assert "count: 3" not in sampling
    plain = export_shipped(tmp_path / "plain", warm_up=False) / "decoding" / "config.pbtxt"
    assert not {"model_warmup", "response_cache", "priority_levels:"} & set(
        plain.read_text().split()
    )


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    code, said = run("models", "export-triton", str(tmp_path))
    assert code == 2
    assert "not empty" in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_check_loads_a_repository_or_says_what_is_wrong(repository: Path, tmp_path: Path) -> None:
    code, said = run("models", "check", str(repository))
    assert (code, "load" in said) == (0, True)
    broken = export_shipped(tmp_path / "broken", dtype="bf16", device="cuda")
    code, said = run("models", "check", str(broken))
    assert code == 2
    assert "tritonserver" in said
