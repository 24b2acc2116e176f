"""Who may call what: every identity against every method, twelve ways to cheat with a token, and
who gets no connection at all."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.mesh.conftest import Town
from tests.mesh.gates import gate_of

import vtryon
from vtryon.v1 import (
    decoding_pb2,
    job_pb2,
    latent_encoder_pb2,
    outcome_pb2,
    pipeline_pb2,
    sampling_pb2,
    text_encoder_pb2,
)
from vtryon_mesh.certificates import Authority
from vtryon_mesh.description import EDGE, Mesh

METHODS = [
    f"/{service.full_name}/{method.name}"
    for file in (
        decoding_pb2,
        job_pb2,
        latent_encoder_pb2,
        outcome_pb2,
        pipeline_pb2,
        sampling_pb2,
        text_encoder_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
PATHS = ["/v1/try-ons", "/v1/images/edits", "/v1/stages/sampling", "/healthz", "/docs"]
HEALTH = "/grpc.health.v1.Health/Check"
OTHERS = [
    HEALTH,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.channelz.v1.Channelz/GetServers",
    "/",
]
MESH = Mesh.load()
CANARY = "canary-4711"


async def status_of(channel: grpc.aio.Channel, method: str) -> tuple[grpc.StatusCode, str]:
    """Call a method with nothing in the request; gives how it ended."""
    call = channel.unary_stream(method)(b"", timeout=10)
    try:
        async for _ in call:
            break
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    finally:
        call.cancel()
    return grpc.StatusCode.OK, ""


# Who may call what, by what a path begins with: written down here once more, by hand. A caller that
# is added to mesh.yaml is not let in before it is added here.
STAGE_CALLERS = {"pipeline", "rest", "kafka"}
ALLOWED = {
    "pipeline": {"/vtryon.v1.PipelineService/": {"edge", "rest", "jobs"}},
    "latent-encoder": {"/vtryon.v1.LatentEncoderService/": STAGE_CALLERS},
    "text-encoder": {"/vtryon.v1.TextEncoderService/": STAGE_CALLERS},
    "sampling": {"/vtryon.v1.SamplingService/": STAGE_CALLERS},
    "decoding": {"/vtryon.v1.DecodingService/": STAGE_CALLERS},
    "jobs": {
        "/vtryon.v1.JobService/": {"edge", "rest", "kafka"},
        "/vtryon.v1.OutcomeService/": {"kafka"},
    },
    "rest": {"/v1/": {"edge"}},
    "kafka": {},
}
ASKS_FOR_HEALTH = {
    "pipeline": {"edge", "rest", "jobs"},
    "latent-encoder": STAGE_CALLERS,
    "text-encoder": STAGE_CALLERS,
    "sampling": STAGE_CALLERS,
    "decoding": STAGE_CALLERS,
    "jobs": {"edge", "rest", "kafka"},
    "rest": {"edge"},
    "kafka": set(),
}


def may_call(identity: str, service: str, path: str) -> bool:
    health = "/healthz" if service == "rest" else "/grpc.health.v1.Health/"
    rules = {**ALLOWED[service], health: ASKS_FOR_HEALTH[service]}
    return any(path.startswith(start) and identity in who for start, who in rules.items())


@pytest.mark.parametrize("service", MESH.services)
@pytest.mark.parametrize("identity", MESH.identities)
async def test_every_identity_against_every_method(town: Town, service: str, identity: str) -> None:
    async with town.channel(town.inbound(service), identity) as channel:
        for method in [*METHODS, *PATHS, *OTHERS]:
            code, said = await status_of(channel, method)
            denied = (code, said) == (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied")
            assert denied != may_call(identity, service, method), (method, code, said)
            if not denied:
                assert code is not grpc.StatusCode.UNAVAILABLE


def test_the_expectation_names_every_service_and_identity() -> None:
    assert ALLOWED.keys() == ASKS_FOR_HEALTH.keys() == MESH.services.keys()
    callers = {one for rules in ALLOWED.values() for who in rules.values() for one in who}
    assert callers <= set(MESH.identities)


def test_the_description_lets_in_whom_the_expectation_does() -> None:
    """As above without a mesh; what Envoy makes of it is asked of every identity."""
    for name, service in MESH.services.items():
        for path in [*METHODS, *PATHS, *OTHERS]:
            described = {
                caller
                for starts, callers in service.allowed.values()
                for caller in callers
                if path.startswith(tuple(starts))
            }
            expected = {one for one in MESH.identities if may_call(one, name, path)}
            assert described == expected, (name, path)


def test_what_is_private_is_for_bridges_alone() -> None:
    assert MESH.services["jobs"].allowed["callers-of-outcomeservice"] == (
        ["/vtryon.v1.OutcomeService/"],
        ("kafka",),
    )
    assert not any("Outcome" in MESH.services[name].prefix for name in MESH.edge.serves)


@pytest.fixture(scope="module")
def strangers(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates that nobody should take."""
    folder = tmp_path_factory.mktemp("strangers")
    other = Authority.create("another mesh")
    other.issue(folder, "unknown-authority", town.mesh.identity(EDGE))
    own = town.layout.authority
    assert own is not None
    own.issue(folder, "expired", town.mesh.identity(EDGE), days=-1)
    own.issue(folder, "elsewhere", "spiffe://another.domain/ns/vtryon/sa/edge")
    own.issue(folder, "nameless", None)
    return folder


@pytest.mark.parametrize("service", MESH.services)
@pytest.mark.parametrize(
    "who", ["unknown-authority", "expired", "elsewhere", "nameless", None, "in plain text"]
)
async def test_no_port_of_the_mesh_takes_a_stranger(
    town: Town, strangers: Path, service: str, who: str | None
) -> None:
    target = town.inbound(service)
    plain = who == "in plain text"
    channel = grpc.aio.insecure_channel(target) if plain else town.channel(target, who, strangers)
    async with channel:
        code, _ = await status_of(channel, HEALTH)
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_services_and_outbound_ports_are_on_the_loopback_address_alone(town: Town) -> None:
    for process in town.layout.processes:
        assert {address.host for address in process.listens} == {"127.0.0.1"}


def sign(town: Town, key: object = None, headers: dict | None = None, **changes: object) -> str:
    wanted, now = town.mesh.edge.jwt, int(time.time())
    claims = {
        "iss": wanted.issuer,
        "aud": wanted.audience,
        "sub": "eve",
        "scope": "read try-on",
        "tenant": "acme",
        "iat": now,
        "exp": now + 600,
        **changes,
    }
    given = {name: value for name, value in claims.items() if value is not None}
    own = {"kid": "local", **(headers or {})}
    return jwt.encode(given, key or town.issuer.key, "ES256", headers=own)


def unsigned(town: Town) -> str:
    def part(value: dict) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = jwt.decode(sign(town), options={"verify_signature": False})
    return f"{part({'alg': 'none', 'kid': 'local'})}.{part(claims)}."


def confused(town: Town) -> str:
    """Signed with the public key as if it were a shared secret."""
    public = town.issuer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head = {"alg": "HS256", "kid": "local"}
    claims = jwt.decode(sign(town), options={"verify_signature": False})
    parts = [
        base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in (head, claims)
    ]
    mac = hmac.new(public, b".".join(parts), hashlib.sha256).digest()
    return b".".join([*parts, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()


def tampered(town: Town) -> str:
    head, _, signature = sign(town, scope="read").split(".")
    claims = jwt.decode(sign(town), options={"verify_signature": False})
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


ATTACKS = {
    "none": lambda town: None,
    "no signature": unsigned,
    "the public key as a secret": confused,
    "changed claims": tampered,
    "another's key": lambda town: sign(town, ec.generate_private_key(ec.SECP256R1())),
    "an unknown key id": lambda town: sign(town, headers={"kid": "../../etc/passwd"}),
    "another issuer": lambda town: sign(town, iss="https://elsewhere"),
    "another audience": lambda town: sign(town, aud="another"),
    "expired": lambda town: sign(town, exp=int(time.time()) - 3600),
    "without an end": lambda town: sign(town, exp=None),
    "not yet": lambda town: sign(town, nbf=int(time.time()) + 3600),
    "without the scope": lambda town: sign(town, scope="read"),
    "a scope that only begins so": lambda town: sign(town, scope="read try-on-everything"),
    "without a tenant": lambda town: sign(town, tenant=None),
    "no token at all": lambda town: "x" * 200,
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_tokens_that_do_not_hold_are_refused(town: Town, attack: str) -> None:
    token = ATTACKS[attack](town)
    async with vtryon.Client(town.edge_address, tls=town.tls, token=token, retry=False) as client:
        with pytest.raises(vtryon.AccessError):
            await client.try_on(b"person", b"garment", steps=1)


async def test_a_good_token_is_taken_and_a_second_one_beside_it_is_not(town: Town) -> None:
    good = sign(town)
    async with town.client(good) as client:
        await client.try_on(b"person", b"garment", steps=1)
    credentials = grpc.ssl_channel_credentials((town.layout.certificates / "ca.crt").read_bytes())
    async with grpc.aio.secure_channel(str(town.layout.edge_address), credentials) as channel:
        call = channel.unary_stream("/vtryon.v1.PipelineService/TryOn")(
            b"",
            metadata=[("authorization", f"Bearer {unsigned(town)}"), ("authorization", good)],
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_tenant_is_who_the_token_says(town: Town, tmp_path: Path) -> None:
    """A tenant named by the caller would be another bucket at every call."""
    limit = 5
    with gate_of(town, tmp_path, requests_per_second_of_a_tenant=limit) as gate:
        async with gate.channel() as channel:

            async def ask(number: int, token: str) -> grpc.StatusCode:
                call = channel.unary_stream("/vtryon.v1.PipelineService/TryOn")(
                    b"",
                    metadata=[
                        ("authorization", f"Bearer {token}"),
                        ("x-vtryon-tenant", f"mask-{number}"),
                    ],
                )
                return await call.code()

            loud, quiet = sign(town, tenant="loud"), sign(town, tenant="quiet")
            codes: list[grpc.StatusCode] = []
            async with asyncio.timeout(60):
                while grpc.StatusCode.RESOURCE_EXHAUSTED not in codes:
                    codes += await asyncio.gather(*(ask(one, loud) for one in range(10 * limit)))
            assert await ask(0, quiet) is not grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_edge_serves_pipeline_and_jobs_and_no_stage(town: Town) -> None:
    token = sign(town)
    credentials = grpc.ssl_channel_credentials((town.layout.certificates / "ca.crt").read_bytes())
    async with grpc.aio.secure_channel(str(town.layout.edge_address), credentials) as channel:
        for method in METHODS:
            call = channel.unary_stream(method)(
                b"", metadata=[("authorization", f"Bearer {token}")], timeout=10
            )
            code = grpc.StatusCode.OK
            try:
                async for _ in call:
                    pass
            except grpc.aio.AioRpcError as error:
                code = error.code()
            served = method.startswith(("/vtryon.v1.PipelineService/", "/vtryon.v1.JobService/"))
            assert (code is grpc.StatusCode.PERMISSION_DENIED) == (not served), method


async def test_neither_prompts_nor_pictures_nor_tokens_are_in_any_log(town: Town) -> None:
    token = town.issuer.token("acme")
    async with town.client(token) as client:
        await client.try_on(CANARY.encode(), b"garment", f"wear {CANARY}", steps=2)
        with pytest.raises(vtryon.RequestError):
            await client.try_on(CANARY.encode(), b"garment", f"{CANARY}\0", steps=2)
    await asyncio.sleep(11)  # Envoy writes its log every ten seconds
    logs = list((town.layout.folder / "logs").iterdir())
    assert len(logs) > 15
    for path in logs:
        content = path.read_bytes()
        assert CANARY.encode() not in content, path.name
        assert token.encode() not in content, path.name
        assert token.rpartition(".")[2].encode() not in content, path.name
