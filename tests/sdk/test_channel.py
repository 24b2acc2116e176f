import asyncio

import pytest
import trustme
from tests.support.pictures import png

import vtryon
from vtryon.types import Stage
from vtryon.wire.retry import FOR_SERVICES
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.host import host
from vtryon_services.jobs.settings import JobsSettings
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.stages.sampling.settings import SamplingSettings


@pytest.fixture
def authority(tmp_path):
    return trustme.CA()


def write(tmp_path, certificate: trustme.LeafCert, name: str):
    chain, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    return chain, key


@pytest.fixture
async def secure(authority: trustme.CA, tmp_path):
    """A scripted mesh behind mutual TLS: its target, and the CA's file."""
    chain, key = write(tmp_path, authority.issue_cert("localhost"), "server")
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    settings = PipelineSettings.load(
        tls_certificate_path=chain, tls_key_path=key, tls_client_ca_path=ca, log_level="error"
    )
    async with host(settings, list(Stage), "localhost:0", backend="scripted") as serving:
        yield serving.address, ca


async def test_mutual_tls_lets_the_right_client_in(secure, authority, tmp_path) -> None:
    target, ca = secure
    chain, key = write(tmp_path, authority.issue_cert("client"), "client")
    tls = vtryon.Tls(ca_path=ca, certificate_path=chain, key_path=key)
    async with vtryon.Client(target, tls=tls, token="secret") as client:
        assert (await client.try_on(png(), steps=1)).picture.data


async def test_services_reach_one_another_past_a_proxy(
    scripted_mesh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with vtryon.Client(scripted_mesh, retry=FOR_SERVICES) as client:
        assert (await client.try_on(png(), steps=1)).picture.data


async def test_a_token_never_leaves_the_machine_in_plain_text() -> None:
    with pytest.raises(vtryon.SettingsError, match="needs TLS"):
        async with vtryon.Client("mesh.example:443", token="secret"):
            pass


async def test_a_token_travels_with_each_call(scripted_mesh: str) -> None:
    fresh = iter(["one", "two"])
    async with vtryon.Channel(scripted_mesh, token=lambda: next(fresh)) as channel:
        assert channel.metadata() == (("authorization", "Bearer one"),)
        assert channel.metadata() == (("authorization", "Bearer two"),)


@pytest.mark.parametrize(
    ("tls", "message"),
    [
        (vtryon.Tls(certificate_path="a.pem"), "both a certificate and its key"),
        (vtryon.Tls(ca_path="/nowhere/ca.pem"), "can't read /nowhere/ca.pem"),
        (vtryon.Tls(ca_path=__file__), "holds no certificate in PEM"),
        (vtryon.Tls(certificate_path=__file__, key_path=__file__), "no certificate and key"),
    ],
)
async def test_wrong_tls_files_are_named(tls: vtryon.Tls, message: str) -> None:
    with pytest.raises(vtryon.SettingsError, match=message):
        async with vtryon.Client("localhost:1", tls=tls):
            pass


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "empty"),
        ("http://localhost:50050", "scheme http://.*host:port"),
        ("grpc://localhost:50050", "scheme grpc://.*host:port"),
        ("https://user:secret@mesh.example:443/", "scheme https://.*host:port.*TLS"),
        ("localhost", "not host:port"),
        ("localhost:grpc", "not host:port"),
        ("localhost:50050/v1", "not host:port"),
        ("localhost:50050\n", "not host:port"),
        ("localhost:70000", "not host:port"),
        ("dns:///mesh.example", "not host:port"),
    ],
)
async def test_what_is_no_address_is_refused_with_what_to_write(target: str, message: str) -> None:
    with pytest.raises(vtryon.SettingsError, match=message) as caught:
        async with vtryon.Client(target):
            pass
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50050",
        "[::1]:50050",
        "unix:/run/vtryon.sock",
        "dns:///mesh.example:443",
        "ipv4:10.0.0.1:50053,10.0.0.2:50053",
    ],
)
async def test_addresses_of_grpc_are_accepted(target: str) -> None:
    async with vtryon.Client(target) as client:
        assert client.channel.target == target


TARGETS = [
    (kind, name)
    for kind in (PipelineSettings, JobsSettings, RestSettings, KafkaSettings, SamplingSettings)
    for name in kind.model_fields
    if name.endswith("_target") or name == "triton_url"
]


@pytest.mark.parametrize(("kind", "name"), TARGETS, ids=str)
def test_every_setting_that_is_an_address_refuses_a_scheme(kind, name: str) -> None:
    with pytest.raises(vtryon.SettingsError, match=rf"(?i){name}.*host:port"):
        kind.load(**{name: "http://127.0.0.1:50050"})


@pytest.mark.parametrize("token", ["secret\n", "  secret \r\n", lambda: "secret\n"])
async def test_a_token_with_white_space_around_it_is_stripped(token, scripted_mesh: str) -> None:
    async with vtryon.Channel(scripted_mesh, token=token) as channel:
        assert channel.metadata() == (("authorization", "Bearer secret"),)


@pytest.mark.parametrize("token", ["", "\n", "seçret", "se cret", "se\ncret", 7])
async def test_what_can_be_no_token_is_refused_without_repeating_it(token) -> None:
    for given in (token, lambda: token):
        with pytest.raises(vtryon.SettingsError, match="token") as caught:
            async with vtryon.Channel("localhost:1", token=given) as channel:
                channel.metadata()
        assert "cret" not in caught.value.message


@pytest.mark.parametrize("tenant", ["Müller", "shop\n", " shop", "x" * 256, 7])
async def test_what_can_be_no_tenant_is_refused_by_name(scripted: vtryon.Client, tenant) -> None:
    with pytest.raises(vtryon.RequestError, match="tenant") as caught:
        scripted.acting_for(tenant)
    assert caught.value.reason is vtryon.Reason.FIELD_INVALID
    assert [violation.field for violation in caught.value.violations] == ["tenant"]


def test_a_client_used_in_another_event_loop_says_so_and_can_be_entered_anew() -> None:
    client = vtryon.Client("localhost:1")
    first = asyncio.new_event_loop()
    first.run_until_complete(client.__aenter__())

    async def use() -> None:
        with pytest.raises(vtryon.SettingsError, match="another event loop"):
            await client.try_on(png())
        with pytest.raises(vtryon.SettingsError, match="another event loop"):
            await client.jobs.get("job")

    async def enter_anew() -> None:
        async with client:
            assert client.channel.grpc

    asyncio.run(use())
    asyncio.run(enter_anew())
    first.close()
