"""Services as processes of their own, on ports of their own."""

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil

VTRYON = Path(sys.executable).with_name("vtryon")


class ServedMesh:
    """A running `vtryon serve`; `target` is where, `log` what it has said so far."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        found = self.wait_for(r"address\W+([\w.]+:\d+)")
        self.target = found.group(1)

    def _read(self) -> None:
        for line in self.process.stderr:
            self.log.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str, seconds: float = 60) -> re.Match:
        while True:
            line = self._lines.get(timeout=seconds)
            if line is None:
                raise AssertionError(f"the process ended: {''.join(self.log)}")
            if found := re.search(pattern, line):
                return found

    def memory_kib(self, field: str) -> int:
        """VmRSS or VmHWM of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+)", status).group(1))

    def cpu_ticks(self) -> int:
        """Processor time used so far, in the kernel's ticks."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def served(*arguments: str, listen: str = "127.0.0.1:0", **variables: str) -> Iterator[ServedMesh]:
    """Run `vtryon serve` with arguments, on a free port, until the block ends."""
    process = subprocess.Popen(
        [VTRYON, "serve", *arguments, "--listen", listen],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    try:
        yield ServedMesh(process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stderr.close()


class Replicas:
    """Two processes of one stage, each on a port that it keeps through its restarts."""

    def __init__(self, stage: str, *arguments: str, **variables: str) -> None:
        self._command = (stage, *arguments)
        threads = {} if "scripted" in arguments else {"VTRYON_THREADS": "1"}
        self._variables = {**threads, "VTRYON_DRAIN_DELAY_SECONDS": "0", **variables}
        self.ports = (free_port(), free_port())
        self._contexts: dict[int, AbstractContextManager[ServedMesh]] = {}
        self.processes: dict[int, ServedMesh] = {}
        for port in self.ports:
            self._start(port)

    @property
    def target(self) -> str:
        return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def ticks(self) -> dict[int, int]:
        return {port: process.cpu_ticks() for port, process in self.processes.items()}

    def busiest(self, before: dict[int, int]) -> int:
        """The port of the replica that has computed most since `before`."""
        now = self.ticks()
        return max(self.ports, key=lambda port: now[port] - before[port])

    def strike(self, number: int, port: int) -> ServedMesh:
        """Send a signal to a replica."""
        os.kill(self.processes[port].process.pid, number)
        return self.processes[port]

    def restart(self, port: int) -> None:
        """Start a replica again that was told to end."""
        self.processes[port].process.wait(20)
        self._contexts[port].__exit__(None, None, None)
        self._start(port)

    def wait_for_connection(self, port: int, seconds: float = 30) -> None:
        """Wait until a client has found a replica: gRPC tries one that was away ever less often."""
        process = psutil.Process(self.processes[port].process.pid)
        end = time.monotonic() + seconds
        while not any(
            one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port
            for one in process.net_connections("tcp")
        ):
            assert time.monotonic() < end, f"nobody has connected to the port {port}"
            time.sleep(0.05)

    def close(self) -> None:
        for context in self._contexts.values():
            context.__exit__(None, None, None)

    def _start(self, port: int) -> None:
        self._contexts[port] = served(*self._command, listen=f"127.0.0.1:{port}", **self._variables)
        self.processes[port] = self._contexts[port].__enter__()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
