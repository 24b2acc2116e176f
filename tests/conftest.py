from collections.abc import AsyncIterator, Iterator

import pytest
from tests.support.kafka import Kafka, kafka_and_registry
from tests.support.processes import ServedMesh, served
from xdist.scheduler import LoadScopeScheduling

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon.testing import scripted_mesh as scripted_mesh_of
from vtryon_services.mannequin.triples import Example, held_out


@pytest.fixture(autouse=True)
def _no_variables_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("VTRYON_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
async def mesh() -> AsyncIterator[str]:
    """The whole mesh on the shipped checkpoint; a target."""
    async with embedded_mesh() as target:
        yield target


@pytest.fixture
async def client(mesh: str) -> AsyncIterator[vtryon.Client]:
    async with vtryon.Client(mesh) as client:
        yield client


@pytest.fixture(scope="session")
async def scripted_mesh() -> AsyncIterator[str]:
    """The whole mesh without a model; a step takes 20 ms."""
    async with scripted_mesh_of(step_seconds=0.02, max_concurrency=2) as target:
        yield target


@pytest.fixture
async def scripted(scripted_mesh: str) -> AsyncIterator[vtryon.Client]:
    async with vtryon.Client(scripted_mesh) as client:
        yield client


@pytest.fixture(scope="session")
def served_mesh() -> Iterator[ServedMesh]:
    """`vtryon serve all --backend scripted` as a process of its own."""
    with served("all", "--backend", "scripted") as mesh:
        yield mesh


@pytest.fixture(scope="session")
def example() -> Example:
    return held_out(0)


# Whose tests share servers.
_TOGETHER = ("tests/mesh/", "tests/services/bridges/kafka/")


class OneWorkerPerFile(LoadScopeScheduling):
    """Keeps the tests of a file in one worker of pytest-xdist, and those that share servers."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((folder for folder in _TOGETHER if file.startswith(folder)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneWorkerPerFile:
    return OneWorkerPerFile(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", action="store_true", help="repeat faults at the full figures")


@pytest.fixture(scope="session")
def chaos(request: pytest.FixtureRequest) -> bool:
    """Whether faults are repeated at the full figures (`make chaos`), which takes long."""
    return bool(request.config.getoption("--chaos"))


@pytest.fixture(scope="module")
def kafka_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker in memory, and a schema registry; a module's own, for they compute when idle."""
    with kafka_and_registry(tmp_path_factory.mktemp("kafka")) as servers:
        yield servers
