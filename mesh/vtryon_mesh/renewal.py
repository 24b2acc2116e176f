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
    """Renews certificates and tokens past half of their lifetime.

    Attributes:
        mesh: the mesh of the identities.
        certificates: their folder.
        authority: signs certificates; None: they are not renewed.
        days: lifetime of a renewed certificate.
        issuer: signs tokens; None: there is no token.
        token: the token's file; tenant: its subject.
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
        """Renew everything that is due; return the names.

        Raises:
            OSError: a file can't be written; all others are.
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
        """Renew everything that is due; log the names, or each cause of a failure once.

        Existing files are valid for another half of their lifetime: a later call retries.
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
    """Make certificates, `jwks.json` and a token in a folder; keep existing signing keys.

    Args:
        folder: for the files that the mesh's processes read.
        mesh: the description.
        kept: folder of the signing keys.
        days: lifetime of a certificate.
        tenant: subject of the token.
        new_authority: replace the existing authority.

    Raises:
        SettingsError: the existing authority is unusable, or a file can't be written.
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
