"""A PostgreSQL server from Debian, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import free_port


def find() -> Path | None:
    """The folder of initdb and postgres."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server on a port of its own; gives SQLAlchemy's URL of an empty database."""
    binaries, port = find(), free_port()
    assert binaries is not None
    # Its own user, since it refuses root.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="vtryon-pg-"))
    try:
        if user:
            shutil.chown(folder, "postgres")
        data, log = folder / "data", folder / "log"
        initdb = [binaries / "initdb", "--auth=trust", "--username=vtryon", "--no-sync", "-D", data]
        subprocess.run([*user, *initdb], check=True, capture_output=True, cwd="/")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        control = [*user, binaries / "pg_ctl", "-D", data, "-l", log, "-w"]
        start = [*control, "-o", f"{options} -c fsync=off", "start"]
        subprocess.run(start, check=True, capture_output=True, cwd="/", timeout=60)
        try:
            yield f"postgresql+asyncpg://vtryon@127.0.0.1:{port}/postgres"
        finally:
            stop = [*control, "-m", "immediate", "stop"]
            subprocess.run(stop, check=False, capture_output=True, cwd="/", timeout=60)
            time.sleep(0.1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
