"""Browser tests: the real front end of the real server in headless Chromium, in both renderers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import comfy_fixtures
import comfy_hosts
import pytest

if importlib.util.find_spec("playwright") is None:
    missing = "playwright is not installed: install the dev extra (pip install -e '.[dev]')."
elif not comfy_fixtures.HOSTS:
    missing = comfy_hosts.HOW_TO_GET_ONE
else:
    import comfy_browser
    from playwright.sync_api import Browser

    missing = "" if comfy_browser.find_chromium() is not None else comfy_browser.HOW_TO_GET_ONE
collect_ignore_glob = comfy_fixtures.require(missing)


def pytest_configure(config: pytest.Config) -> None:
    comfy_fixtures.register(config)


def pytest_report_header() -> str:
    if missing:
        return f"BROWSER TESTS SKIPPED: {missing}"
    root = comfy_fixtures.comfy_server.front_end_root()
    host = f"ComfyUI {'.'.join(map(str, comfy_hosts.version(comfy_fixtures.HOSTS[0])))}"
    return f"front end {'of' if root is None else f'{root} on'} {host} in Chromium"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/browser/" in str(item.path):
            item.add_marker(pytest.mark.browser)


if not missing:

    @pytest.fixture(scope="session")
    def browser() -> Iterator[Browser]:
        with comfy_browser.chromium() as opened:
            yield opened

    @pytest.fixture(scope="module", params=[comfy_browser.CLASSIC, comfy_browser.NODES_2])
    def renderer(request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture(scope="module")
    def opened(
        browser: Browser, server: comfy_fixtures.comfy_server.ComfyServer, renderer: str
    ) -> Iterator[comfy_browser.FrontEnd]:
        """One page a renderer and module: it opens in seconds, so tests share it."""
        with comfy_browser.front_end(browser, server, renderer, has_touch=True) as front:
            yield front

    @pytest.fixture
    def front(opened: comfy_browser.FrontEnd) -> Iterator[comfy_browser.FrontEnd]:
        """The page with an empty graph; nothing may be said in the console."""
        opened.page.evaluate("() => app.graph.clear()")
        opened.errors.clear()
        yield opened
        assert opened.errors == []
