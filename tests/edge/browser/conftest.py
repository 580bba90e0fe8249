"""A real Chromium that finds every host name at a small server of ours; a fresh profile and page for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from edge.browser.house import House, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[House, Browser]]:
    """The server and the browser. Not for longer than a module: the driver keeps an event loop in this thread."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if PROGRAM is None:
        pytest.skip("chromium is not installed")
    house, close = opened()
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--host-resolver-rules=MAP *.test 127.0.0.1:{house.port},MAP 127.0.0.1 127.0.0.1:{house.port},MAP * ~NOTFOUND",
    ]
    try:
        with driver.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=PROGRAM, args=arguments)
            yield house, browser
            browser.close()
    finally:
        close()


@pytest.fixture
def house(running: tuple[House, Browser]) -> House:
    running[0].reset()
    return running[0]


@pytest.fixture
def context(running: tuple[House, Browser], house: House) -> Iterator[BrowserContext]:
    context = running[1].new_context()
    yield context
    house.gate.set()
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page; an error that reaches it from any script fails the test."""
    page = context.new_page()
    page.set_default_timeout(10_000)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    assert failures == []
