"""TLS identities of an Envoy, and the identities that it accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtryon_mesh.envoy.pieces import TYPES, Config, typed


@dataclass(frozen=True, slots=True)
class EnvoyCertificate:
    """Certificate of an Envoy: `NAME.crt` and `NAME.key` in a folder with `ca.crt`."""

    name: str
    folder: Path


def _shown(identity: EnvoyCertificate) -> Config:
    """Show a certificate; a renewed one, renamed into its place, is taken without a restart."""
    return {
        **_kept(identity),
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "alpn_protocols": ["h2"],
    }


def _kept(identity: EnvoyCertificate) -> Config:
    """Find a certificate by `NAME.yaml`, which names its files and has Envoy watch them."""
    folder = str(identity.folder)
    source = {"path": f"{folder}/{identity.name}.yaml", "watched_directory": {"path": folder}}
    config = {"resource_api_version": "V3", "path_config_source": source}
    return {"tls_certificate_sds_secret_configs": [{"name": identity.name, "sds_config": config}]}


def secret(identity: EnvoyCertificate) -> Config:
    """Give the content of `NAME.yaml`."""
    folder = identity.folder
    certificate = {
        "certificate_chain": {"filename": str(folder / f"{identity.name}.crt")},
        "private_key": {"filename": str(folder / f"{identity.name}.key")},
        "watched_directory": {"path": str(folder)},
    }
    kind = f"{TYPES}extensions.transport_sockets.tls.v3.Secret"
    return {"resources": [{"@type": kind, "name": identity.name, "tls_certificate": certificate}]}


def server_tls(identity: EnvoyCertificate, accepted: Sequence[str]) -> Config:
    """Let in who shows one of these SPIFFE identities, signed by the mesh."""
    return typed(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context={**_shown(identity), "validation_context": _signed(identity, accepted)},
    )


def client_tls(identity: EnvoyCertificate, expected: str) -> Config:
    """Talk only to who shows a SPIFFE identity, signed by the mesh."""
    signed = _signed(identity, [expected])
    return typed(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context={**_shown(identity), "validation_context": signed},
    )


def _signed(identity: EnvoyCertificate, names: Sequence[str]) -> Config:
    return {
        "trusted_ca": {"filename": str(identity.folder / "ca.crt")},
        "match_typed_subject_alt_names": [
            {"san_type": "URI", "matcher": {"exact": name}} for name in names
        ],
    }


def caller_tls(identity: EnvoyCertificate) -> Config:
    """Take callers from outside, who have no certificate."""
    return typed(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            **_kept(identity),
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "alpn_protocols": ["h2", "http/1.1"],
        },
    )
