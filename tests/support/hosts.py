"""Two hosts on one cable, as network namespaces; the cable can be pulled."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Hosts:
    """Namespaces with an address each."""

    names: tuple[str, str]
    addresses: tuple[str, str]

    def on(self, host: int, *command: object) -> list[str]:
        """The command that runs another on a host."""
        return ["ip", "netns", "exec", self.names[host], *map(str, command)]

    def pull(self) -> None:
        ip("-n", self.names[1], "link", "set", "cable", "down")

    def plug_in(self) -> None:
        ip("-n", self.names[1], "link", "set", "cable", "up")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Make them, or skip where that is not allowed."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("takes root and iproute2")
    names = tuple(f"vtryon-{os.getpid()}-{side}" for side in "ab")
    addresses = ("10.213.7.1", "10.213.7.2")
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        first, second = names
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "cable", "netns", second)
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield Hosts(names, addresses)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
