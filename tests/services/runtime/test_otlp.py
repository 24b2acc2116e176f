"""OpenTelemetry's standard variables are honoured, or refused by their names."""

import subprocess

import pytest
import trustme
from tests.support.processes import VTRYON

from vtryon.errors import SettingsError
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.runtime.otlp import check_variables, exporter_options
from vtryon_services.runtime.telemetry import set_up_export

OTLP = "OTEL_EXPORTER_OTLP_"


@pytest.fixture
def variables(monkeypatch, tmp_path):
    """Set variables; PEM stands for a file with a certificate."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.crt")

    def take(**given: str) -> None:
        for name, value in given.items():
            monkeypatch.setenv(name, str(tmp_path / "ca.crt") if value == "PEM" else value)

    return take


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (f"{OTLP}PROTOCOL", "http/protobuf", "only grpc"),
        (f"{OTLP}TRACES_PROTOCOL", "http/json", "only grpc"),
        (f"{OTLP}METRICS_PROTOCOL", "http/protobuf", "only grpc"),
        (f"{OTLP}INSECURE", "yes", "true or false"),
        (f"{OTLP}TRACES_INSECURE", "1", "true or false"),
        (f"{OTLP}METRICS_HEADERS", "api-key=1,secret", "header 2 is not name=value"),
        (f"{OTLP}TRACES_CERTIFICATE", "/nowhere/ca.crt", "can't read"),
        (f"{OTLP}METRICS_CERTIFICATE", __file__, "PEM"),
        (f"{OTLP}TRACES_CLIENT_KEY", "PEM", "needs .*TRACES_CLIENT_CERTIFICATE"),
        (f"{OTLP}LOGS_ENDPOINT", "http://localhost:4317", "standard error"),
        (f"{OTLP}LOGS_HEADERS", "a=b", "standard error"),
        ("OTEL_LOGS_EXPORTER", "otlp", "standard error"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp or none"),
        ("OTEL_METRICS_EXPORTER", "prometheus", "VTRYON_PROMETHEUS_LISTEN"),
        ("OTEL_SDK_DISABLED", "1", "true or false"),
        (f"{OTLP}TRACES_TIMEOUT", "soon", "positive number"),
        (f"{OTLP}COMPRESSION", "brotli", "takes gzip"),
    ],
)
def test_a_variable_that_is_not_honoured_is_refused_by_name(variables, name, value, said) -> None:
    variables(**({"OTEL_TRACES_EXPORTER": "otlp"} | {name: value}))
    with pytest.raises(SettingsError, match=said) as caught:
        set_up_export(PipelineSettings(), "pipeline")
    assert name in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "setting", "traces", "metrics"),
    [
        ({}, None, None, None),
        ({}, "a:1", {"endpoint": "a:1", "insecure": True}, {"endpoint": "a:1", "insecure": True}),
        ({f"{OTLP}ENDPOINT": "http://b:1"}, None, {}, {}),
        ({f"{OTLP}TRACES_ENDPOINT": "http://b:1"}, None, {}, None),
        (
            {f"{OTLP}TRACES_ENDPOINT": "http://b:1"},
            "a:1",
            {},
            {"endpoint": "a:1", "insecure": True},
        ),
        (
            {f"{OTLP}TRACES_CERTIFICATE": "PEM"},
            "a:1",
            {"endpoint": "a:1"},
            {"endpoint": "a:1", "insecure": True},
        ),
        (
            {f"{OTLP}METRICS_INSECURE": "false"},
            "a:1",
            {"endpoint": "a:1", "insecure": True},
            {"endpoint": "a:1"},
        ),
        ({"OTEL_TRACES_EXPORTER": "none"}, "a:1", None, {"endpoint": "a:1", "insecure": True}),
        ({"OTEL_METRICS_EXPORTER": "none"}, "a:1", {"endpoint": "a:1", "insecure": True}, None),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, None, None, {}),
        ({f"{OTLP}PROTOCOL": "grpc", f"{OTLP}ENDPOINT": "http://b:1"}, None, {}, {}),
    ],
)
def test_each_signal_goes_where_its_variables_say(
    variables, given, setting, traces, metrics
) -> None:
    variables(**given)
    check_variables()
    assert exporter_options("TRACES", setting) == traces
    assert exporter_options("METRICS", setting) == metrics


def test_a_disabled_sdk_exports_nothing_and_refuses_prometheus(variables) -> None:
    variables(**{"OTEL_SDK_DISABLED": "true", f"{OTLP}ENDPOINT": "http://b:1"})
    set_up_export(PipelineSettings(), "pipeline")(0.0)
    with pytest.raises(SettingsError, match="OTEL_SDK_DISABLED"):
        set_up_export(PipelineSettings(prometheus_listen="127.0.0.1:0"), "pipeline")


def test_a_server_with_another_protocol_ends_with_its_name(variables) -> None:
    variables(**{f"{OTLP}PROTOCOL": "http/protobuf"})
    command = [VTRYON, "serve", "all", "--backend", "scripted", "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/protobuf'" in done.stderr
