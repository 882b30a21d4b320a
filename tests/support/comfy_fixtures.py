"""The running server as one fixture for the server tests and the browser tests, because its start takes long."""

from __future__ import annotations

import os
from collections.abc import Iterator

import comfy_hosts
import comfy_server
import pytest

HOSTS = comfy_hosts.find_hosts()
NAME = "comfy_fixtures"


def register(config: pytest.Config) -> None:
    """Register the fixture `server`. Each folder's conftest calls this; only the first call has an effect."""
    import comfy_fixtures

    if not config.pluginmanager.has_plugin(NAME):
        config.pluginmanager.register(comfy_fixtures, NAME)


def require(missing: str) -> list[str]:
    """Return the patterns of tests that cannot run because something is missing. In CI that is a failure."""
    if missing and os.environ.get("CI") == "true":
        raise pytest.UsageError(missing)
    return ["test_*.py"] if missing else []


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[comfy_server.ComfyServer]:
    """The newest host's server on the CPU, with the extension as the Manager would install it."""
    assert request.config.cache is not None
    models = comfy_server.make_models(HOSTS[0], request.config.cache.mkdir("diffusion_blend_models"))
    base = tmp_path_factory.mktemp("server") / "base"
    comfy_server.prepare(base, models)
    with comfy_server.running(HOSTS[0], base) as running:
        yield running
