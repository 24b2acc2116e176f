import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtryon.catalog import CATALOG, JOBS
from vtryon.errors import SettingsError
from vtryon.types import Stage
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.host import load_settings, settings_of
from vtryon_services.runtime.settings import variable_prefix
from vtryon_services.stages.sampling.settings import SamplingSettings


def test_a_services_own_variable_comes_before_the_shared_one(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_DEVICE", "cuda")
    assert SamplingSettings.load().device == "cuda"
    monkeypatch.setenv("VTRYON_SAMPLING_DEVICE", "cuda:1")
    assert SamplingSettings.load().device == "cuda:1"
    assert SamplingSettings.load(device="cpu").device == "cpu"


def test_an_unknown_name_stops_the_start_and_lists_the_known(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_SAMPLING_SLOTZ", "4")
    with pytest.raises(SettingsError, match="VTRYON_SAMPLING_SLOTZ is no setting") as caught:
        SamplingSettings.load()
    assert "max_waiting" in caught.value.message


def test_an_unknown_shared_name_stops_every_service(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_DEVISE", "cuda")
    for name in CATALOG:
        with pytest.raises(SettingsError, match="VTRYON_DEVISE"):
            settings_of(name).load()


def test_another_services_variables_are_none_of_its_business(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_DECODING_MAX_CONCURRENCY", "3")
    monkeypatch.setenv("VTRYON_TOKEN", "for the command line")
    assert SamplingSettings.load().max_concurrency == 16


def test_all_bad_values_are_told_at_once(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_SAMPLING_MAX_CONCURRENCY", "none")
    monkeypatch.setenv("VTRYON_SAMPLING_DTYPE", "int4")
    with pytest.raises(SettingsError) as caught:
        SamplingSettings.load()
    for part in (
        "VTRYON_SAMPLING_MAX_CONCURRENCY is 'none'",
        "VTRYON_SAMPLING_DTYPE is 'int4'",
        "'bf16'",
    ):
        assert part in caught.value.message


@given(st.integers(-(2**40), 2**40))
def test_a_number_in_range_is_taken_and_others_are_not(max_concurrency: int) -> None:
    if max_concurrency >= 1:
        assert (
            SamplingSettings.load(max_concurrency=max_concurrency).max_concurrency
            == max_concurrency
        )
    else:
        with pytest.raises(SettingsError, match="max_concurrency"):
            SamplingSettings.load(max_concurrency=max_concurrency)


@pytest.mark.parametrize("stage", list(Stage))
def test_one_name_has_its_spellings(stage: Stage) -> None:
    settings = settings_of(stage)
    assert settings.service is stage
    package = stage.value.replace("-", "_")
    assert settings.__module__.split(".")[-2] == package
    assert variable_prefix(stage) == f"VTRYON_{package.upper()}_"


async def test_the_services_are_those_of_the_contract() -> None:
    from vtryon.v1 import (
        decoding_pb2,
        latent_encoder_pb2,
        pipeline_pb2,
        sampling_pb2,
        text_encoder_pb2,
    )
    from vtryon_services.host import make_services

    files = (latent_encoder_pb2, text_encoder_pb2, sampling_pb2, decoding_pb2, pipeline_pb2)
    contract = {
        service.full_name: {method.name for method in service.methods}
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
    }
    services = await make_services(list(Stage), backend="scripted")
    served = {item.proto_name: {method.name for method in item.methods} for item in services}
    assert served == contract


def test_a_short_name_counts_for_every_started_service_that_has_it(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_CACHE_BYTES", "0")
    loaded = load_settings(list(Stage), {})
    with_cache = {name for name, own in loaded.items() if hasattr(own, "cache_bytes")}
    assert with_cache == {Stage.LATENT_ENCODER, Stage.TEXT_ENCODER}
    assert {loaded[name].cache_bytes for name in with_cache} == {0}


def test_a_short_name_that_no_started_service_has_names_those_that_do(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_CACHE_BYTES", "0")
    with pytest.raises(SettingsError) as caught:
        load_settings([Stage.PIPELINE, Stage.SAMPLING], {})
    words = "cache_bytes is one of latent-encoder, text-encoder"
    assert words in caught.value.message


def test_a_wrong_value_is_told_by_the_variable_that_was_read(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_MAX_CONCURRENCY", "0")
    with pytest.raises(SettingsError) as caught:
        SamplingSettings.load()
    assert caught.value.message.startswith("VTRYON_MAX_CONCURRENCY is '0': ")
    assert "greater than or equal to 1" in caught.value.message
    assert "VTRYON_SAMPLING_MAX_CONCURRENCY" not in caught.value.message
    monkeypatch.setenv("VTRYON_SAMPLING_MAX_CONCURRENCY", "-1")
    with pytest.raises(SettingsError, match=r"^VTRYON_SAMPLING_MAX_CONCURRENCY is '-1'"):
        SamplingSettings.load()
    with pytest.raises(SettingsError, match=r"^max_concurrency is 0"):
        SamplingSettings.load(max_concurrency=0)


def test_the_long_name_wins_over_the_short_one_in_every_service(monkeypatch) -> None:
    monkeypatch.setenv("VTRYON_CACHE_BYTES", "1")
    monkeypatch.setenv("VTRYON_TEXT_ENCODER_CACHE_BYTES", "2")
    loaded = load_settings(list(Stage), {})
    assert loaded[Stage.LATENT_ENCODER].cache_bytes == 1
    assert loaded[Stage.TEXT_ENCODER].cache_bytes == 2


def test_a_setting_given_by_a_program_that_nobody_knows_is_refused() -> None:
    with pytest.raises(SettingsError, match="placse is no setting"):
        load_settings(list(Stage), {"placse": 3})


@pytest.mark.parametrize("variable", ["VTRYON_TYPO", "VTRYON_LATENT_ENCODER_TYPO"])
def test_an_unknown_variable_is_said_once_with_each_service_once(monkeypatch, variable) -> None:
    started = [settings_of(stage) for stage in Stage]
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError, match=f"^{variable} is no setting") as caught:
        started[0].load_from({}, started)
    assert caught.value.message.count(variable) == 1
    services = caught.value.message.partition("Settings of ")[2].partition(":")[0].split(", ")
    assert len(services) == len(set(services)) >= 1


def test_every_setting_says_what_it_does() -> None:
    kinds = [*map(settings_of, (*Stage, JOBS)), RestSettings, KafkaSettings]
    mute = {
        f"{kind.service}.{name}"
        for kind in kinds
        for name, field in kind.model_fields.items()
        if len((field.description or "").split()) < 4
    }
    assert mute == set()
