"""What is set and not read stops the start by its name."""

from __future__ import annotations

import os
import subprocess

import pytest
from tests.support.processes import VTRYON

from vtryon.backend_settings import ONLY_OF, unread, variable
from vtryon.errors import SettingsError
from vtryon.types import Stage
from vtryon_services.embedded import embedded_mesh
from vtryon_services.host import load_settings
from vtryon_services.runtime.settings import SamplerSettings

VALUES = {
    "checkpoint": "/models/mine",
    "device": "cuda",
    "dtype": "bf16",
    "keep_fp8": "false",
    "threads": "2",
    "compiled": "true",
    "loras": "silk=/loras/silk.safetensors",
    "triton_url": "triton:8001",
    "triton_shared_memory_bytes": "1",
    "scripted_seconds": "0.5",
}
BACKENDS = ("torch", "triton", "scripted")
UNREAD = [
    (name, backend) for name, only in ONLY_OF.items() for backend in BACKENDS if backend != only
]
STAGES = [stage for stage in Stage if stage is not Stage.PIPELINE]


def test_the_table_names_settings_of_stages() -> None:
    assert set(ONLY_OF) == set(VALUES) <= set(SamplerSettings.model_fields)


@pytest.mark.parametrize(("name", "backend"), UNREAD)
def test_a_setting_of_another_backend_is_refused_by_its_name(name, backend, monkeypatch) -> None:
    for one in (variable(name, Stage.SAMPLING), variable(name)):
        monkeypatch.setenv(one, VALUES[name])
        with pytest.raises(SettingsError, match=f"^{one} is set, but the backend of sampling is"):
            load_settings([Stage.SAMPLING], {"backend": backend})
        monkeypatch.delenv(one)
    with pytest.raises(SettingsError, match=f"^{name} is set, but"):
        load_settings([Stage.SAMPLING], {"backend": backend, name: VALUES[name]})


@pytest.mark.parametrize("name", ["checkpoint", "device", "dtype", "threads"])
def test_what_a_triton_server_was_exported_with_names_the_export(name, monkeypatch) -> None:
    monkeypatch.setenv(variable(name), VALUES[name])
    with pytest.raises(SettingsError, match=f"vtryon models export-triton --{name}"):
        load_settings(list(Stage), {"backend": "triton"})


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_set_is_never_refused(backend: str) -> None:
    load_settings(list(Stage), {"backend": backend})


@pytest.mark.parametrize("name", list(ONLY_OF))
def test_a_setting_is_taken_by_the_backend_that_reads_it(name: str, monkeypatch) -> None:
    monkeypatch.setenv(variable(name), VALUES[name])
    loaded = load_settings(list(Stage), {"backend": ONLY_OF[name]})
    assert name in loaded[Stage.SAMPLING].model_fields_set


def test_a_short_name_is_read_if_one_stage_of_the_process_reads_it(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_SCRIPTED_SECONDS", "0.5")
    monkeypatch.setenv("VTRYON_SAMPLING_BACKEND", "scripted")
    assert load_settings(list(Stage), {})[Stage.SAMPLING].scripted_seconds == 0.5
    with pytest.raises(SettingsError, match="VTRYON_SCRIPTED_SECONDS is set"):
        load_settings([Stage.DECODING], {})


def test_a_variable_of_a_service_that_is_not_started_is_left_alone(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_SAMPLING_SCRIPTED_SECONDS", "0.5")
    monkeypatch.setenv("VTRYON_CHECKPOINT", "/models/mine")
    load_settings([Stage.DECODING], {})
    load_settings([Stage.PIPELINE], {})


@pytest.mark.parametrize("name", ["loras", "compiled"])
def test_what_the_sampler_alone_reads_is_refused_by_its_backend(name, monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_SAMPLING_BACKEND", "triton")
    for given in ({name: VALUES[name]}, {}):
        with pytest.raises(SettingsError, match=f"{name}|{variable(name)}"):
            load_settings(list(Stage), given)
        monkeypatch.setenv(variable(name), VALUES[name])


def test_only_the_sampler_is_compiled(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_COMPILED", "true")
    load_settings([Stage.DECODING], {})
    monkeypatch.setenv("VTRYON_DECODING_COMPILED", "true")
    with pytest.raises(SettingsError, match="VTRYON_DECODING_COMPILED is set"):
        load_settings([Stage.DECODING], {})


@pytest.mark.parametrize("one", ["VTRYON_DECODING_CHECKPOINT", "VTRYON_CHECKPOINT"])
@pytest.mark.parametrize("stages", [[Stage.PIPELINE], [Stage.PIPELINE, Stage.SAMPLING]])
def test_an_ensemble_refuses_what_the_stages_would_read(one, stages, monkeypatch) -> None:
    monkeypatch.setenv(one, "/models/mine")
    with pytest.raises(SettingsError, match=f"{one} is set, but the topology .* is ensemble"):
        load_settings(stages, {"topology": "ensemble"})


async def test_an_embedded_ensemble_refuses_a_checkpoint() -> None:
    with pytest.raises(SettingsError, match=r"^checkpoint is set, but the topology"):
        async with embedded_mesh(topology="ensemble", checkpoint="/models/mine"):
            pass


@pytest.mark.parametrize(
    ("topology", "one", "value"),
    [
        ("direct", "VTRYON_PIPELINE_TRITON_URL", "triton:8001"),
        ("ensemble", "VTRYON_PIPELINE_RESUME_EVERY", "2"),
    ],
)
def test_a_topology_refuses_settings_of_the_other(topology, one, value, monkeypatch) -> None:
    monkeypatch.setenv(one, value)
    with pytest.raises(SettingsError, match=f"^{one} is set, but the topology"):
        load_settings([Stage.PIPELINE], {"topology": topology})


def test_up_and_serve_refuse_the_same(monkeypatch) -> None:
    for name, backend in UNREAD:
        one = variable(name, Stage.SAMPLING)
        with monkeypatch.context() as patched:
            patched.setenv(one, VALUES[name])
            with pytest.raises(SettingsError) as caught:
                load_settings([Stage.SAMPLING], {"backend": backend})
        assert list(unread(Stage.SAMPLING, backend, {one})) == [caught.value.message]


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        (
            ["all", "--backend", "triton"],
            {"VTRYON_SAMPLING_CHECKPOINT": "/models/mine"},
            "VTRYON_SAMPLING_CHECKPOINT is set, but the backend of sampling is triton",
        ),
        (
            ["pipeline", "--topology", "ensemble", "--checkpoint", "/models/mine"],
            {},
            "--checkpoint /models/mine: pipeline has no such setting",
        ),
    ],
)
def test_serve_ends_with_exit_code_2(words: list[str], given: dict[str, str], said: str) -> None:
    done = subprocess.run(
        [VTRYON, "serve", *words],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
