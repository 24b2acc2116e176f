"""A key and a token of one's own, for a mesh on one machine; elsewhere an identity provider's."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from vtryon.errors import SettingsError
from vtryon_mesh.description import Mesh
from vtryon_mesh.secrets import write_secret

TOKEN_SECONDS = 24 * 3600
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

    @classmethod
    def kept(cls, mesh: Mesh, path: Path) -> Issuer:
        """Read the key from a file, or make one and write it there.

        Raises:
            SettingsError: the file holds no such key.
        """
        if not path.exists():
            made = cls.create(mesh)
            private = made.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            write_secret(path, private)
            return made
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError) as error:
            raise SettingsError(f"the tokens' key in {path} can't be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SettingsError(f"{path} is no key of an elliptic curve")
        return cls(mesh, key)

    @property
    def jwks(self) -> str:
        """The public key, as the edge wants it."""
        key = ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return json.dumps({"keys": [{**key, "kid": _KEY_ID, "alg": "ES256", "use": "sig"}]})

    def write_token(self, path: Path, tenant: str) -> None:
        """Write a token where only this user reads it."""
        write_secret(path, self.token(tenant).encode())

    def token(self, tenant: str, seconds: float = TOKEN_SECONDS) -> str:
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
