"""A model hub on this machine: a repository's revisions, tree and files, over HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """One repository, `org/name`, with a commit on `main`; `errors`: what it says instead."""

    folder: Path
    url: str = ""
    error: tuple[int, str] | None = None
    fetched: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request."""
        if self.error is not None:
            status, code = self.error
            return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        if path.startswith("/api/models/org/name/revision/"):
            if path.rpartition("/")[2] not in {"main", COMMIT}:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            return 200, {}, json.dumps({"id": "org/name", "sha": COMMIT}).encode()
        if path.startswith("/api/models/org/name/tree/"):
            files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
            return 200, {}, json.dumps([self._entry(path) for path in files]).encode()
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if name == path or not (self.folder / name).is_file():
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        body = (self.folder / name).read_bytes()
        return 200, {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": COMMIT}, body

    def _entry(self, path: Path) -> dict[str, object]:
        body = path.read_bytes()
        name = path.relative_to(self.folder).as_posix()
        return {"type": "file", "path": name, "size": len(body), "oid": _oid(body)}


def _oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@contextmanager
def fake_hub(folder: Path) -> Iterator[FakeHub]:
    """Serve a folder as the repository org/name."""
    hub = FakeHub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            status, headers, body = hub.answer(path)
            if self.command == "GET" and "/resolve/" in path:
                hub.fetched.append(path.partition(f"{COMMIT}/")[2])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
