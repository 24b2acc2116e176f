"""Certificates made again, renewed, and kept from others."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from tests.support.processes import VTRYON

from vtryon_mesh.certificates import Authority, make_certificates, renew_certificates
from vtryon_mesh.description import Mesh

MESH = Mesh.load()


def made(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [VTRYON, "mesh", "certificates", folder, *options]
    return subprocess.run(command, capture_output=True, text=True, umask=0)


def leaf(folder: Path, name: str = "edge") -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def test_made_again_the_authority_stays_and_certificates_are_renewed(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    assert made(folder).returncode == 0
    authority, first, keys = (
        (folder / name).read_bytes() for name in ("ca.crt", "edge.crt", "jwks.json")
    )
    assert made(folder).returncode == 0
    assert (folder / "ca.crt").read_bytes() == authority
    assert (folder / "jwks.json").read_bytes() == keys  # so that tokens stay good
    assert (folder / "edge.crt").read_bytes() != first
    signer = x509.load_pem_x509_certificate(authority)
    leaf(folder).verify_directly_issued_by(signer)


def test_another_authority_is_asked_for(tmp_path: Path) -> None:
    folder, kept = tmp_path / "certificates", tmp_path / "keys"
    assert made(folder, "--authority", str(kept)).returncode == 0
    assert not (folder / "authority").exists()
    before = (folder / "ca.crt").read_bytes()
    without_key = made(folder)
    assert without_key.returncode == 2
    assert "--new-authority" in " ".join(without_key.stderr.split())
    assert (folder / "ca.crt").read_bytes() == before
    assert made(folder, "--new-authority").returncode == 0
    assert (folder / "ca.crt").read_bytes() != before


def test_keys_are_for_this_user_whatever_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir(mode=0o777)
    for name in ("token", "edge.key", ".edge.key.part", ".token.part"):
        (folder / name).touch()
        (folder / name).chmod(0o666)
    assert made(folder).returncode == 0
    secret = [*folder.rglob("*.key"), folder / "token"]
    assert len(secret) == len(MESH.identities) + 3  # the authority's, the tokens', a token
    for path in (folder, folder / "authority", *secret):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_renewed_are_those_that_have_lived_for_half_of_their_lifetime(tmp_path: Path) -> None:
    authority = Authority.create()
    make_certificates(tmp_path, MESH, authority, days=7)
    assert renew_certificates(tmp_path, MESH, authority) == []
    authority.issue(tmp_path, "jobs", MESH.identity("jobs"), days=-1)
    before = leaf(tmp_path)
    assert renew_certificates(tmp_path, MESH, authority) == ["jobs"]
    assert leaf(tmp_path) == before
    assert renew_certificates(tmp_path, MESH, authority) == []


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [VTRYON, "mesh", "certificates", tmp_path, "--watch", "--days", f"{4 / 86_400:.6f}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait(10)
    process.stdout.close()


def test_a_process_that_watches_renews_them_all_the_time(
    watching: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert "identities" in watching.stdout.readline()
    serials = {leaf(tmp_path).serial_number}
    while len(serials) < 3:  # at one look, or at two where they were made across a second's end
        assert watching.stdout.readline().startswith("renewed: ")
        serials.add(leaf(tmp_path).serial_number)


def test_a_process_that_watches_goes_on_where_a_file_cannot_be_written(
    watching: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert "identities" in watching.stdout.readline()
    in_the_way = tmp_path / ".edge.key.part"
    in_the_way.mkdir()
    line = watching.stdout.readline()
    while line.startswith("renewed"):  # what was on its way
        line = watching.stdout.readline()
    assert "not renewed, tried again" in line
    assert str(in_the_way) in line
    in_the_way.rmdir()
    assert "edge" in watching.stdout.readline()


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = made(tmp_path / "file")
    assert (done.returncode, done.stdout) == (2, "")
    assert "file can't be used" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
