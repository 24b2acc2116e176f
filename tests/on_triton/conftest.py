from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.triton import export_shipped, installation, triton_server

import vtryon
from vtryon.embedded import embedded_mesh
from vtryon.errors import SettingsError
from vtryon_services.triton.server import Running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A server that loads beside other work takes minutes."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(600), append=False)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository of the shipped checkpoint."""
    try:
        installation()
    except SettingsError as error:
        pytest.skip(str(error))
    return export_shipped(tmp_path_factory.mktemp("triton") / "repository", threads=1)


@pytest.fixture(scope="session")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A real tritonserver with all models loaded."""
    with triton_server(repository, tmp_path_factory.mktemp("triton") / "server.log") as running:
        yield running


IN_TRITON = {"direct": {"backend": "triton"}, "ensemble": {"topology": "ensemble"}}


@pytest.fixture(scope="session", params=IN_TRITON)
async def triton_mesh(triton: Running, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The whole mesh with its arithmetic in Triton, in both topologies; a target."""
    given = IN_TRITON[request.param]
    async with embedded_mesh(triton_url=triton.grpc, **given) as target:
        yield target


@pytest.fixture
async def on_triton(triton_mesh: str) -> AsyncIterator[vtryon.Client]:
    async with vtryon.Client(triton_mesh) as client:
        yield client
