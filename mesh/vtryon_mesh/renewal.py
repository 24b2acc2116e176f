"""Certificates, keys and a token in a folder, and their renewal before they expire."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vtryon.errors import SettingsError
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
    _said: str = ""

    def renew(self) -> list[str]:
        """Renew what is due; gives the names of it.

        Raises:
            OSError: a file can't be written; the others are.
        """
        renewed: list[str] = []
        try:
            if self.authority is not None:
                renewed = renew_certificates(
                    self.certificates, self.mesh, self.authority, self.days
                )
        finally:
            if self.issuer is not None and time.monotonic() - self._signed > TOKEN_SECONDS / 2:
                self.issuer.write_token(self.token, self.tenant)
                self._signed = time.monotonic()
                renewed.append(self.token.name)
        return renewed

    def renew_and_say(self, say: Callable[[str], None]) -> None:
        """Renew what is due, and say what was renewed or why it can't be; each cause is said once.

        What is there is valid for another half of its lifetime: a later call tries again.
        """
        try:
            renewed = self.renew()
        except OSError as error:
            cause = f"not renewed, tried again: {error}"
            if cause != self._said:
                say(cause)
            self._said = cause
            return
        self._said = ""
        if renewed:
            say(f"renewed: {', '.join(renewed)}")


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
        SettingsError: the authority that is there can't be used, or a file can't be written.
    """
    token = folder / "token"
    try:
        authority = kept_authority(folder, kept, new=new_authority)
        make_certificates(folder, mesh, authority, days)
        issuer = Issuer.kept(mesh, kept / "tokens.key")
        (folder / "jwks.json").write_text(issuer.jwks)
        issuer.write_token(token, tenant)
    except OSError as error:
        raise SettingsError(f"{folder} can't be used: {error}") from error
    return Renewal(mesh, folder, authority, issuer, token, days, tenant)
