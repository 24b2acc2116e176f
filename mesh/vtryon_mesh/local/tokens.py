"""A key and a token of one's own, for a mesh on one machine; elsewhere an identity provider's."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from vtryon_mesh.description import Mesh

_KEY_ID = "local"


@dataclass(frozen=True, slots=True)
class Issuer:
    """Signs tokens with ES256."""

    mesh: Mesh
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, mesh: Mesh) -> Issuer:
        """Make a key."""
        return cls(mesh, ec.generate_private_key(ec.SECP256R1()))

    @property
    def jwks(self) -> str:
        """The public key, as the edge wants it."""
        key = ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**key, "kid": _KEY_ID, "alg": "ES256", "use": "sig"}]})

    def write_token(self, path: Path, tenant: str) -> None:
        """Write a token where only this user reads it."""
        path.touch(mode=0o600)
        path.write_text(self.token(tenant))

    def token(self, tenant: str, seconds: float = 24 * 3600) -> str:
        """Sign a token that may try on."""
        wanted, now = self.mesh.edge.jwt, int(time.time())
        claims = {
            "iss": wanted.issuer,
            "aud": wanted.audience,
            "sub": tenant,
            "scope": wanted.scope,
            wanted.tenant_claim: tenant,
            "iat": now,
            "exp": now + int(seconds),
        }
        return jwt.encode(claims, self.key, "ES256", headers={"kid": _KEY_ID})
