"""Server tests: the real ComfyUI server, started once, with the extension as the Manager would install it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import comfy_hosts
import comfy_server
import pytest

hosts = comfy_hosts.find_hosts()

if not hosts:
    collect_ignore_glob = ["test_*.py"]
    if os.environ.get("CI") == "true":
        raise pytest.UsageError(comfy_hosts.HOW_TO_GET_ONE)


def pytest_report_header() -> str:
    if not hosts:
        return f"SERVER TESTS SKIPPED: {comfy_hosts.HOW_TO_GET_ONE}"
    return f"ComfyUI server {'.'.join(map(str, comfy_hosts.version(hosts[0])))} at {hosts[0]}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/server/" in str(item.path):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[comfy_server.ComfyServer]:
    """The running server."""
    assert request.config.cache is not None
    models = comfy_server.make_models(hosts[0], request.config.cache.mkdir("diffusion_blend_models"))
    base = tmp_path_factory.mktemp("server") / "base"
    comfy_server.prepare(base, models)
    with comfy_server.running(hosts[0], base) as running:
        yield running
