"""Connecting: a server is waited for; what waiting does not mend is named at once."""

import asyncio
import datetime
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from tests.support.pictures import png
from tests.support.processes import free_port

import vtryon
from vtryon.types import Stage
from vtryon_services.host import host
from vtryon_services.pipeline.settings import PipelineSettings

PICTURE = png()
LONG_SECONDS = 60.0


class Files:
    """Certificates as files: of an authority, and of one that nobody trusts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.authority = trustme.CA()
        self.stranger = trustme.CA()
        self.ca = self.write_ca(self.authority, "ca")
        self.strangers_ca = self.write_ca(self.stranger, "stranger")

    def write_ca(self, authority: trustme.CA, name: str) -> Path:
        path = self._folder / f"{name}.pem"
        authority.cert_pem.write_to_path(path)
        return path

    def write(self, certificate: trustme.LeafCert, name: str) -> tuple[Path, Path]:
        chain, key = self._folder / f"{name}-leaf.pem", self._folder / f"{name}.key"
        certificate.cert_chain_pems[0].write_to_path(chain)
        certificate.private_key_pem.write_to_path(key)
        return chain, key


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def mesh(address: str = "localhost:0", **settings) -> AsyncIterator[str]:
    """A scripted mesh; its target."""
    loaded = PipelineSettings.load(log_level="error", drain_grace_seconds=0.5, **settings)
    async with host(loaded, list(Stage), address, backend="scripted") as serving:
        yield serving.address


def tls_of(files: Files, certificate: trustme.LeafCert, name: str, **more) -> dict[str, Path]:
    chain, key = files.write(certificate, name)
    return {"tls_certificate_path": chain, "tls_key_path": key, **more}


@pytest.fixture(scope="module")
async def servers(files: Files) -> AsyncIterator[dict[str, str]]:
    """One server of each kind; their targets."""
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    good = files.authority.issue_cert("localhost", "127.0.0.1")
    expired = files.authority.issue_cert("localhost", not_after=past)
    elsewhere = files.authority.issue_cert("elsewhere.example")
    async with (
        mesh() as plain,
        mesh(**tls_of(files, good, "good")) as tls,
        mesh(**tls_of(files, good, "mutual", tls_client_ca_path=files.ca)) as mutual,
        mesh(**tls_of(files, expired, "expired")) as out_of_date,
        mesh(**tls_of(files, elsewhere, "elsewhere")) as other_name,
    ):
        yield {
            "plain": plain,
            "tls": tls,
            "mutual": mutual,
            "expired": out_of_date,
            "other name": other_name,
        }


def client_tls(files: Files, kind: str) -> vtryon.Tls | None:
    match kind:
        case "plain text":
            return None
        case "tls":
            return vtryon.Tls(ca_path=files.ca)
        case "another authority":
            return vtryon.Tls(ca_path=files.strangers_ca)
        case "the system's authorities":
            return vtryon.Tls()
        case "a certificate":
            chain, key = files.write(files.authority.issue_cert("client"), "client")
        case "a stranger's certificate":
            chain, key = files.write(files.stranger.issue_cert("client"), "strangers-client")
        case "the name elsewhere.example":
            return vtryon.Tls(ca_path=files.ca, server_name="elsewhere.example")
    return vtryon.Tls(ca_path=files.ca, certificate_path=chain, key_path=key)


@pytest.mark.parametrize(
    ("server", "kind", "message"),
    [
        ("tls", "plain text", "the server wants TLS"),
        ("mutual", "plain text", "the server wants TLS"),
        ("plain", "tls", "the server speaks plain text, not TLS"),
        ("tls", "another authority", "not signed by the authorities in .*stranger.pem"),
        ("tls", "the system's authorities", "not signed by the system's authorities"),
        ("expired", "tls", "certificate has expired"),
        ("other name", "tls", "certificate is not for localhost; see Tls.server_name"),
        ("mutual", "tls", "wants a client certificate"),
        ("mutual", "a stranger's certificate", "refused the client certificate .*strangers-client"),
    ],
)
async def test_what_waiting_does_not_mend_is_named_at_once(
    servers, files: Files, server: str, kind: str, message: str
) -> None:
    """With a deadline that no test would survive: the error comes before it, and so without it."""
    async with vtryon.Client(servers[server], tls=client_tls(files, kind)) as client:
        for _ in range(2):
            with pytest.raises(vtryon.SettingsError, match=message) as caught:
                await client.try_on(PICTURE, steps=1, timeout_seconds=1000)
            assert servers[server] in caught.value.message
        with pytest.raises(vtryon.SettingsError, match=message):
            await client.jobs.get("job")
        with pytest.raises(vtryon.SettingsError, match=message):
            await client.wait_ready(1000)


@pytest.mark.parametrize(
    ("server", "kind"),
    [
        ("plain", "plain text"),
        ("tls", "tls"),
        ("mutual", "a certificate"),
        ("other name", "the name elsewhere.example"),
    ],
)
async def test_the_right_client_is_served(servers, files: Files, server: str, kind: str) -> None:
    async with vtryon.Client(servers[server], tls=client_tls(files, kind)) as client:
        await client.wait_ready(LONG_SECONDS)
        assert (await client.try_on(PICTURE, steps=1)).picture.data


async def test_a_name_that_does_not_exist_is_named_at_once(monkeypatch) -> None:
    """The resolver's answer is the only thing that is not real: there may be no network here."""

    def unknown(*_: object, **__: object) -> Iterator[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with vtryon.Client("mesh.invalid:50050") as client:
        with pytest.raises(vtryon.SettingsError, match=r"mesh.invalid:50050: .*can't be resolved"):
            await client.try_on(PICTURE, steps=1, timeout_seconds=1000)


async def test_the_address_of_rest_is_recognised() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with vtryon.Client(f"127.0.0.1:{port}") as client:
            with pytest.raises(vtryon.SettingsError, match=r"HTTP/1.1, not gRPC"):
                await client.try_on(PICTURE, steps=1, timeout_seconds=1000)


async def test_an_unreachable_server_is_named_with_its_cause_at_the_deadline() -> None:
    async with vtryon.Client("127.0.0.1:1") as client:
        with pytest.raises(vtryon.UnavailableError) as caught:
            await client.try_on(PICTURE, steps=1, timeout_seconds=0.5)
    assert "127.0.0.1:1 can't be reached: connection refused" in caught.value.message
    assert caught.value.reason is vtryon.Reason.STAGE_UNAVAILABLE


async def test_without_a_deadline_the_policy_limits_the_wait() -> None:
    policy = vtryon.RetryPolicy(max_wait_seconds=2)
    async with vtryon.Client("127.0.0.1:1", retry=policy) as client:
        with pytest.raises(vtryon.UnavailableError, match=r"127.0.0.1:1.*waited 2 s"):
            await client.try_on(PICTURE, steps=1)
        with pytest.raises(vtryon.UnavailableError, match=r"127.0.0.1:1.*waited 2 s"):
            await client.jobs.get("job")


async def test_a_server_that_starts_later_is_waited_for() -> None:
    port = free_port()
    async with vtryon.Client(f"127.0.0.1:{port}") as client:
        waiting = [
            asyncio.create_task(client.try_on(PICTURE, steps=1, timeout_seconds=LONG_SECONDS)),
            asyncio.create_task(client.latent_encoder.encode([PICTURE])),
            asyncio.create_task(client.wait_ready(LONG_SECONDS)),
        ]
        await asyncio.sleep(0.3)  # some attempts fail
        assert not any(task.done() for task in waiting)
        async with mesh(f"127.0.0.1:{port}"):
            await asyncio.gather(*waiting)


async def test_a_server_that_restarts_is_waited_for() -> None:
    async with mesh("127.0.0.1:0") as target, vtryon.Client(target) as client:
        assert (await client.try_on(PICTURE, steps=1)).picture.data
        port = target
    async with vtryon.Client(port) as client:
        later = asyncio.create_task(client.try_on(PICTURE, steps=1, timeout_seconds=LONG_SECONDS))
        async with mesh(port):
            assert (await later).picture.data
        again = asyncio.create_task(client.try_on(PICTURE, steps=1, timeout_seconds=LONG_SECONDS))
        async with mesh(port):
            assert (await again).picture.data


async def test_leaving_a_run_that_waits_for_a_server_ends_it() -> None:
    async with vtryon.Client("127.0.0.1:1") as client:
        run = client.try_on(PICTURE, steps=1)
        task = asyncio.create_task(run)
        await asyncio.sleep(0.05)
        run.cancel()
        with pytest.raises(vtryon.RunCancelledError, match="before it was sent"):
            await task


async def test_closing_the_client_ends_what_waits_for_a_server() -> None:
    async with vtryon.Client("127.0.0.1:1") as client:
        waiting = asyncio.create_task(client.jobs.get("job"))
        await asyncio.sleep(0.05)
    with pytest.raises(vtryon.RunCancelledError, match="closed"):
        await waiting


async def test_a_client_that_connects_slowly_is_served(servers, files: Files) -> None:
    """A line with a second from end to end and back: three round trips with TLS."""
    tls = client_tls(files, "tls")
    async with (
        slow_line(servers["tls"], seconds=0.5) as target,
        vtryon.Client(target, tls=tls) as client,
    ):
        result = await client.try_on(PICTURE, steps=1, timeout_seconds=LONG_SECONDS)
    assert result.picture.data


@asynccontextmanager
async def slow_line(target: str, seconds: float) -> AsyncIterator[str]:
    """Pass bytes on, each way so many seconds later."""
    host_name, _, port = target.rpartition(":")
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(65536):
            loop.call_later(seconds, writer.write, data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host_name, int(port))
        tasks.add(asyncio.create_task(copy(reader, far_writer)))
        tasks.add(asyncio.create_task(copy(far_reader, writer)))
        writers.extend((writer, far_writer))

    server = await asyncio.start_server(serve, "localhost", 0, family=socket.AF_INET)
    yield f"localhost:{server.sockets[0].getsockname()[1]}"
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for writer in writers:
        writer.close()


async def test_a_wrong_token_is_refused_at_once() -> None:
    async def refuse(_request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Jwt verification fails")
        raise AssertionError

    calls = {"GetJob": grpc.unary_unary_rpc_method_handler(refuse)}
    handler = grpc.method_handlers_generic_handler("vtryon.v1.JobService", calls)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with vtryon.Client(f"127.0.0.1:{port}", token="wrong") as client:
        with pytest.raises(vtryon.AccessError, match="Jwt verification fails") as caught:
            await client.jobs.get("job")
    assert caught.value.reason is vtryon.Reason.UNAUTHENTICATED
    await server.stop(None)
