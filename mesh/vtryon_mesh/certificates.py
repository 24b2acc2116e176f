"""Certificates for a mesh outside of Kubernetes, where Istio makes its own.

Keys are P-256. A leaf names its SPIFFE identity (SPIFFE X.509-SVID, section 2), and localhost. The
authority is kept: running processes trust it by `ca.crt`, which they read once. Leaves are renewed,
each renamed into its place, where Envoy notices.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vtryon.errors import SettingsError
from vtryon_mesh.description import Mesh
from vtryon_mesh.documents import write
from vtryon_mesh.envoy.tls import EnvoyCertificate, secret
from vtryon_mesh.secrets import write_secret

LEAF_DAYS = 7.0
_AUTHORITY_DAYS = 3650.0
_PEM = serialization.Encoding.PEM
_SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs: the mesh's own authority.

    Attributes:
        key: its private key; in a file only where `keep` has written one.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, name: str = "vtryon mesh", days: float = _AUTHORITY_DAYS) -> Authority:
        """Make one."""
        key = ec.generate_private_key(ec.SECP256R1())
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(own, own, key, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> Authority | None:
        """Read the authority that `keep` stored in a folder; None if there is none.

        Raises:
            SettingsError: its files can't be read.
        """
        key_path, certificate_path = folder / "ca.key", folder / "ca.crt"
        if not key_path.exists():
            return None
        try:
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"the authority in {folder} can't be read: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SettingsError(f"{key_path} is no key of an elliptic curve")
        return cls(key, certificate)

    def keep(self, folder: Path) -> None:
        """Write the private key and the certificate to a folder that only this user reads."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        write_secret(folder / "ca.key", _private(self.key))
        self.write(folder)

    def issue(self, folder: Path, name: str, uri: str | None, days: float = LEAF_DAYS) -> None:
        """Write NAME.key and NAME.crt for an identity; each is renamed into its place."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.DNSName(name),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        if uri is not None:
            names.insert(0, x509.UniformResourceIdentifier(uri))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(subject, self.certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        write_secret(folder / f"{name}.key", _private(key))
        write_secret(folder / f"{name}.crt", certificate.public_bytes(_PEM))

    def write(self, folder: Path) -> None:
        """Write `ca.crt`, which verifies the other certificates."""
        write_secret(folder / "ca.crt", self.certificate.public_bytes(_PEM))


def kept_authority(folder: Path, kept: Path, *, new: bool = False) -> Authority:
    """Return the authority of a certificates folder, creating one if necessary.

    Args:
        folder: of the certificates.
        kept: folder of the authority's key.
        new: create a new authority in any case.

    Raises:
        SettingsError: the certificates were signed by an authority whose key is not in `kept`.
    """
    authority = None if new else Authority.load(kept)
    if authority is not None:
        return authority
    if (folder / "ca.crt").exists() and not new:
        raise SettingsError(
            f"{folder} has certificates of an authority whose key is not in {kept}: they can't be "
            "renewed. --new-authority replaces the authority; then restart every process that "
            "uses these certificates"
        )
    authority = Authority.create()
    authority.keep(kept)
    return authority


def make_certificates(
    folder: Path, mesh: Mesh, authority: Authority, days: float = LEAF_DAYS
) -> None:
    """Issue a certificate for every identity of the mesh, as Envoy reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority.write(folder)
    for name in mesh.identities:
        _issue(folder, mesh, authority, name, days)


def renew_certificates(
    folder: Path, mesh: Mesh, authority: Authority, days: float = LEAF_DAYS
) -> list[str]:
    """Reissue every certificate past half of its lifetime; return the renewed names.

    Raises:
        OSError: a certificate can't be written; all others are.
    """
    due = list(_due(folder, mesh))
    failures: list[OSError] = []
    for name in due:
        try:
            _issue(folder, mesh, authority, name, days)
        except OSError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return due


def _issue(folder: Path, mesh: Mesh, authority: Authority, name: str, days: float) -> None:
    authority.issue(folder, name, mesh.identity(name), days)
    write_secret(folder / f"{name}.yaml", write(secret(EnvoyCertificate(name, folder))).encode())


def _due(folder: Path, mesh: Mesh) -> Iterator[str]:
    now = datetime.datetime.now(datetime.UTC)
    for name in mesh.identities:
        try:
            leaf = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
        except (OSError, ValueError):
            yield name
            continue
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc - _SKEW
        if leaf.not_valid_after_utc - now <= life / 2:
            yield name


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + datetime.timedelta(days=days)) - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
