import pytest
import trustme
from tests.support.pictures import png

import vtryon
from vtryon.types import Stage
from vtryon_services.host import host
from vtryon_services.pipeline.settings import PipelineSettings


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


async def test_mutual_tls_keeps_the_others_out(secure, tmp_path) -> None:
    target, ca = secure
    stranger = trustme.CA()
    chain, key = write(tmp_path, stranger.issue_cert("client"), "stranger")
    wrong_ca = tmp_path / "stranger-ca.pem"
    stranger.cert_pem.write_to_path(wrong_ca)
    attempts = [
        None,
        vtryon.Tls(ca_path=ca),
        vtryon.Tls(ca_path=ca, certificate_path=chain, key_path=key),
        vtryon.Tls(ca_path=wrong_ca),
    ]
    for tls in attempts:
        async with vtryon.Client(target, tls=tls) as client:
            with pytest.raises(vtryon.UnavailableError):
                await client.try_on(png(), steps=1, timeout_seconds=10)


async def test_a_token_never_leaves_the_machine_in_plain_text() -> None:
    with pytest.raises(vtryon.SettingsError, match="needs TLS"):
        async with vtryon.Client("mesh.example:443", token="secret"):
            pass


async def test_a_token_travels_with_each_call(scripted_mesh: str) -> None:
    fresh = iter(["one", "two"])
    async with vtryon.Channel(scripted_mesh, token=lambda: next(fresh)) as channel:
        assert channel.metadata() == (("authorization", "Bearer one"),)
        assert channel.metadata() == (("authorization", "Bearer two"),)


async def test_an_unreachable_endpoint_is_told_in_time() -> None:
    async with vtryon.Client("127.0.0.1:1") as client:
        with pytest.raises(vtryon.UnavailableError) as caught:
            await client.try_on(png(), steps=1, timeout_seconds=10)
    assert caught.value.reason is vtryon.Reason.STAGE_UNAVAILABLE


@pytest.mark.parametrize(
    ("tls", "message"),
    [
        (vtryon.Tls(certificate_path="a.pem"), "both a certificate and its key"),
        (vtryon.Tls(ca_path="/nowhere/ca.pem"), "can't read /nowhere/ca.pem"),
    ],
)
async def test_wrong_tls_files_are_named(tls: vtryon.Tls, message: str) -> None:
    with pytest.raises(vtryon.SettingsError, match=message):
        async with vtryon.Client("localhost:1", tls=tls):
            pass


async def test_an_empty_target_is_refused() -> None:
    with pytest.raises(vtryon.SettingsError, match="empty"):
        async with vtryon.Client(""):
            pass
