"""A page in headless Chromium, by gRPC-Web through the edge."""

from __future__ import annotations

import functools
import http.server
import io
import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.async_api import async_playwright
from tests.mesh.conftest import AT_ONCE, town_of

EXAMPLES = Path(__file__).parents[2] / "sdk" / "examples"
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium on PATH: apt-get install chromium"
)
STEP_SECONDS = 0.2


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=EXAMPLES)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
async def page():
    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = await browser.new_page(ignore_https_errors=True)
        yield page
        await browser.close()


def png(colour: str) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 128), colour).save(buffer, "PNG")
    return {"name": f"{colour}.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


async def fill_in(page) -> None:
    await page.set_input_files("input[name=person]", png("red"))
    await page.set_input_files("input[name=garment]", png("blue"))
    await page.click("button")


@pytest.mark.timeout(180)
async def test_a_page_sees_every_step_as_it_is_made(site: str, page, tmp_path: Path) -> None:
    seconds = {"VTRYON_SAMPLING_SCRIPTED_SECONDS": str(STEP_SECONDS), **AT_ONCE}
    with town_of(tmp_path, replicas={}, variables=seconds) as town:
        token = town.issuer.token("browser")
        edge_address = f"https://{town.layout.edge_address}"
        await page.goto(f"{site}/browser.html?endpoint={edge_address}&token={token}")
        await fill_in(page)
        await page.wait_for_function("document.getElementById('status').textContent === 'done'")
        arrivals = await page.evaluate("window.arrivals")
        previews = [at for name, at in arrivals if name == "preview"]
        assert len(previews) >= 4
        gaps = [later - earlier for earlier, later in itertools.pairwise(previews)]
        assert all(gap > 1000 * STEP_SECONDS / 2 for gap in gaps), arrivals
        assert arrivals[-1][0] == "finished"
        size = "[...document.images].map(one => [one.naturalWidth, one.naturalHeight])"
        assert all(min(pair) > 0 for pair in await page.evaluate(size))

        await page.goto(f"{site}/browser.html?endpoint={edge_address}&token=stolen")
        await fill_in(page)
        await page.wait_for_function("document.getElementById('status').textContent !== ''")
        assert "Jwt" in await page.text_content("#status")
