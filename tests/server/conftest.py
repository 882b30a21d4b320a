"""Server tests: the real ComfyUI server, started once, with the extension as the Manager would install it."""

from __future__ import annotations

import comfy_fixtures
import comfy_hosts
import pytest

missing = "" if comfy_fixtures.HOSTS else comfy_hosts.HOW_TO_GET_ONE
collect_ignore_glob = comfy_fixtures.require(missing)


def pytest_configure(config: pytest.Config) -> None:
    comfy_fixtures.register(config)


def pytest_report_header() -> str:
    if missing:
        return f"SERVER TESTS SKIPPED: {missing}"
    newest = comfy_fixtures.HOSTS[0]
    return f"ComfyUI server {'.'.join(map(str, comfy_hosts.version(newest)))} at {newest}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/server/" in str(item.path):
            item.add_marker(pytest.mark.server)
