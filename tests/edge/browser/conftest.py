"""A real Chromium that finds every host name at a small server of ours; a fresh profile and page for each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from edge.browser.house import House, chromium, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[House, Browser]]:
    """The server and the browser. Not for longer than a module: the driver keeps an event loop in this thread."""
    house, close = opened()
    try:
        with chromium(house.port) as browser:
            yield house, browser
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
    page.set_default_timeout(20_000)
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    assert failures == []
