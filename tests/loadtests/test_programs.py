"""The programs that measure, at toy size: they run, and their figures are figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from tests.support.triton import installation

from vtryon.errors import SettingsError
from vtryon_loadtests.real_size import transformer_flops
from vtryon_services.models.make import make_random


def run(module: str, *arguments: str, codes: Collection[int] = (0,)) -> list[dict]:
    command = (sys.executable, "-m", f"vtryon_loadtests.{module}", *arguments, "--json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode in codes, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_throughput_has_a_row_per_side_and_draws_a_plot(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    rows = run("throughput", "--rounds", "1", "--images", "2", "--plot", str(plot))
    assert len(rows) == 10
    assert rows[0]["ratio"] == 1
    assert all(len(row["hops_ms"]) == 5 for row in rows[1:])
    assert all(row["images_per_second"] > 0 for row in rows)
    assert all(row["first_preview_ms"] < row["p95_ms"] for row in rows[1:])
    assert plot.stat().st_size > 1000


@pytest.mark.timeout(300)
def test_overload_refuses_and_goes_on(tmp_path: Path) -> None:
    peak, usual, over = run("overload", "--seconds", "4")
    assert peak["finished"] > 0
    assert usual["finished"] > 0
    assert over["refused"] > 0
    assert over["other"] == []


def test_padding_compares_limits_on_every_mix() -> None:
    found = run("padding", "--rows", "3", "--rounds", "1")
    assert {row["ratio"] for row in found if row["limit"] == 0} == {1.0}
    assert all(row["forwards"] == 1 for row in found if row["limit"] == 10)


@pytest.mark.timeout(300)
def test_shared_memory_is_compared_at_every_size() -> None:
    try:
        installation()
    except SettingsError as error:
        pytest.skip(str(error))
    rows = run("shared_memory", "--rounds", "2")
    assert [row["bytes"] >> 10 for row in rows] == [16, 64, 256, 1024, 16384, 65536]
    assert all(row["wire_ms"] > 0 < row["shared_memory_ms"] for row in rows)


@pytest.mark.timeout(300)
def test_the_mesh_is_measured_on_four_roads() -> None:
    *roads, content, other = run("mesh_cost", "--rounds", "1", "--requests", "3")
    assert [row["road"] for row in roads] == ["direct", "edge", "sidecars", "edge and sidecars"]
    assert all(len(row["hops_ms"]) == 5 for row in roads)
    assert content["found"] > other["found"]


def test_floor_tells_every_stage_at_three_sizes() -> None:
    rows = run("floor", "--rounds", "1", "--steps", "1")
    assert [row["at_once"] for row in rows] == [1, 4, 16]
    stages = {"latent-encoder", "text-encoder", "sampling", "decoding"}
    assert all(row["stage_ms"].keys() == stages for row in rows)


@pytest.mark.timeout(300)
def test_real_size_measures_diffusers_and_every_stage(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    make_random(folder, "tiny", dtype=torch.float32)
    short = ("--sizes", "128", "--steps", "1", "--at-once", "1", "2", "--images", "1")
    rows = run("real_size", str(folder), "--device", "cpu", "--dtype", "fp32", *short)
    assert [(row["side"], row["at_once"]) for row in rows] == [
        ("diffusers", 1),
        ("vtryon", 1),
        ("vtryon", 2),
    ]
    assert len(rows[1]["stage_p50_seconds"]) == 4
    assert all(row["teraflops"] > 0 for row in rows)


def test_operations_of_the_real_model() -> None:
    config = {"num_layers": 60, "num_attention_heads": 24, "attention_head_dim": 128}
    # 1024² with two references: 12 · 3072² weights meet each of 12 588 tokens in each layer.
    assert transformer_flops(config, 1024, 300, 2) == pytest.approx(0.28e15, rel=0.05)


@pytest.mark.timeout(300)
def test_every_interface_is_measured() -> None:
    rows = run("interface_cost", "--rounds", "1", "--requests", "2")
    assert [row["interface"] for row in rows] == [
        *("grpc", "grpc, no previews", "rest", "rest, events", "job", "rest, job", "hybrid"),
        "kafka",
    ]
    moved = {row["interface"]: row["kib"] for row in rows}
    assert moved["rest"] < moved["rest, events"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("interface", "attacks"),
    [
        ("edge", ["half open handshakes", "refused requests", "declared payloads"]),
        ("grpc", ["silent streams", "repeated items"]),
        ("rest", ["deep json", "slow bodies"]),
        ("jobs", ["job floods", "reconnecting watches"]),
        ("kafka", ["undecodable records", "large payloads"]),
    ],
)
def test_a_good_caller_is_served_beside_a_hostile_one(interface: str, attacks: list[str]) -> None:
    chosen = [word for attack in attacks for word in ("--attack", attack)]
    short = ("--rounds", "1", "--seconds", "1")
    # A busy machine may delay the good caller; it must be served all the same.
    rows = run("hostile", "--interface", interface, *chosen, *short, codes={0, 1})
    measured = {(row["interface"], row["attack"]) for row in rows}
    assert measured == {(interface, attack) for attack in attacks}
    assert all(row["success_percent"] == 100 for row in rows), rows
    assert all(row["ratio"] > 0 for row in rows)
