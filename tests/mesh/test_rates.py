"""How often callers may ask: all of them together, and each tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
from tests.support.envoy import running_envoy
from tests.support.mesh import free_ports

from vtryon_mesh.description import TENANT_HEADER, Mesh
from vtryon_mesh.envoy.edge import EdgePlace, render_edge
from vtryon_mesh.envoy.pieces import Address

TOO_MANY = 429
# Far more than a limit of 10 or 20 per second lets through, and far less than 1000 times as many.
AT_ONCE, ROUNDS = 100, 20


@contextmanager
def edge(folder: Path, **rates: int) -> Iterator[str]:
    """An edge with rates of its own; nobody is behind it, so what it lets through is a 503."""
    described = Mesh.load()
    mesh = described.model_copy(update={"edge": described.edge.model_copy(update=rates)})
    admin, edge_address, nobody = (Address("127.0.0.1", port) for port in free_ports(3))
    config = render_edge(mesh, EdgePlace(admin, edge_address, {"rest": [nobody]}, None, None))
    with running_envoy(config, folder):
        yield f"http://{edge_address}"


@asynccontextmanager
async def asking(
    url: str, tenant_of: Callable[[int], str]
) -> AsyncIterator[tuple[list[httpx.Response], httpx.AsyncClient]]:
    """Ask as different tenants until one request is refused, or often enough."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as web:
        answers: list[httpx.Response] = []
        while len(answers) < AT_ONCE * ROUNDS and not refused(answers):
            named = range(len(answers), len(answers) + AT_ONCE)
            asked = [web.get("/v1/jobs", headers={TENANT_HEADER: tenant_of(n)}) for n in named]
            answers += await asyncio.gather(*asked)
        yield answers, web


def refused(answers: list[httpx.Response]) -> list[httpx.Response]:
    return [one for one in answers if one.status_code == TOO_MANY]


async def test_all_callers_together_have_a_rate(tmp_path: Path) -> None:
    """Every request is of another tenant, so that none of them is over its own rate."""
    with edge(tmp_path, requests_per_second=20, requests_per_second_of_a_tenant=10) as url:
        async with asking(url, "tenant-{}".format) as (answers, _):
            assert len(refused(answers)) < len(answers)
            assert refused(answers)[0].headers["retry-after"] == "1"


async def test_a_tenant_over_its_rate_takes_nothing_of_the_others(tmp_path: Path) -> None:
    rates = {"requests_per_second": 100_000, "requests_per_second_of_a_tenant": 10}
    with edge(tmp_path, **rates) as url:
        async with asking(url, lambda _: "loud") as (answers, web):
            assert refused(answers)
            quiet = await web.get("/v1/jobs", headers={TENANT_HEADER: "quiet"})
            assert quiet.status_code != TOO_MANY
