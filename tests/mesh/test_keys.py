"""Tokens of an identity provider: its algorithms, its keys by HTTP, and its outage."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from tests.mesh.conftest import Town
from tests.mesh.gates import Gate, gate_of

import vtryon
from vtryon_mesh.envoy.access import RemoteKeys

KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
KINDS = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


class Provider:
    """Publishes keys until it is stopped; counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                body = json.dumps({"keys": [public(name) for name in KEYS]}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}/keys"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server.socket.fileno() < 0:
            return
        self._server.shutdown()
        self._server.server_close()


def public(name: str) -> dict[str, Any]:
    key = KINDS[name].to_jwk(KEYS[name].public_key(), as_dict=True)
    return {**key, "kid": name, "alg": name, "use": "sig"}


def token_of(town: Town, algorithm: str, key: Any = None) -> str:
    claims = jwt.decode(town.issuer.token("acme"), options={"verify_signature": False})
    return jwt.encode(claims, key or KEYS[algorithm], algorithm, headers={"kid": algorithm})


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.stop()


@pytest.fixture(scope="module")
def gate(
    town: Town, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gate]:
    """An edge that fetches its keys every second."""
    keys = RemoteKeys(provider.uri, cache=1)
    with gate_of(town, tmp_path_factory.mktemp("keys"), keys=keys) as gate:
        yield gate


@pytest.mark.parametrize("algorithm", KEYS)
async def test_tokens_of_every_algorithm_are_accepted(gate: Gate, algorithm: str) -> None:
    async with gate.client(token_of(gate.town, algorithm)) as client:
        await client.jobs.page()


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=["RS256", "EdDSA"],
)
async def test_another_key_of_the_same_name_is_refused(gate: Gate, algorithm: str, key) -> None:
    async with gate.client(token_of(gate.town, algorithm, key)) as client:
        with pytest.raises(vtryon.AccessError):
            await client.jobs.page()


async def test_tokens_are_accepted_while_the_identity_provider_is_away(
    gate: Gate, provider: Provider
) -> None:
    """Long after the keys would have been fetched again; must be the module's last test."""
    async with asyncio.timeout(60):
        while provider.asked < 2:  # fetched again without a request
            await asyncio.sleep(0.1)
    provider.stop()
    await asyncio.sleep(4)
    for algorithm in KEYS:
        async with gate.client(token_of(gate.town, algorithm)) as client:
            await client.jobs.page()
