"""Certificates, keys and a token in a folder, and their renewal before they expire."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from vtryon_mesh.certificates import (
    LEAF_DAYS,
    Authority,
    kept_authority,
    make_certificates,
    renew_certificates,
)
from vtryon_mesh.description import Mesh
from vtryon_mesh.local.tokens import TOKEN_SECONDS, Issuer


@dataclass(slots=True)
class Renewal:
    """Renews what has lived for half of its lifetime.

    Attributes:
        mesh: whose identities they are.
        certificates: their folder.
        authority: who signs certificates; None: they are not renewed.
        days: lifetime of a renewed certificate.
        issuer: who signs tokens; None: there is no token.
        token: the token's file; tenant: whom it is for.
    """

    mesh: Mesh
    certificates: Path
    authority: Authority | None
    issuer: Issuer | None
    token: Path
    days: float = LEAF_DAYS
    tenant: str = "local"
    _signed: float = field(default_factory=time.monotonic)

    def renew(self) -> list[str]:
        """Renew what is due; gives the names of it."""
        renewed: list[str] = []
        if self.authority is not None:
            renewed = renew_certificates(self.certificates, self.mesh, self.authority, self.days)
        if self.issuer is not None and time.monotonic() - self._signed > TOKEN_SECONDS / 2:
            self.issuer.write_token(self.token, self.tenant)
            self._signed = time.monotonic()
            renewed.append(self.token.name)
        return renewed


def make(
    folder: Path,
    mesh: Mesh,
    *,
    kept: Path,
    days: float = LEAF_DAYS,
    tenant: str = "local",
    new_authority: bool = False,
) -> Renewal:
    """Make certificates, `jwks.json` and a token in a folder; private keys that sign are kept.

    Args:
        folder: for what the mesh's processes read.
        mesh: the description.
        kept: folder for the keys that sign.
        days: lifetime of a certificate.
        tenant: whom the token is for.
        new_authority: replace the authority that is there.

    Raises:
        SettingsError: the authority that is there can't be used.
    """
    authority = kept_authority(folder, kept, new=new_authority)
    make_certificates(folder, mesh, authority, days)
    issuer = Issuer.kept(mesh, kept / "tokens.key")
    (folder / "jwks.json").write_text(issuer.jwks)
    token = folder / "token"
    issuer.write_token(token, tenant)
    return Renewal(mesh, folder, authority, issuer, token, days, tenant)
