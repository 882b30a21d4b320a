"""Host tests: ComfyUI's own code in this process. One process can hold one host; make test runs one after the other."""

from __future__ import annotations

import os
import sys

import comfy_hosts
import pytest

hosts = comfy_hosts.find_hosts()

if hosts:
    host = str(hosts[0])
    if host not in sys.path:
        sys.path.insert(0, host)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
else:
    collect_ignore_glob = ["test_*.py"]
    if os.environ.get("CI") == "true":
        raise pytest.UsageError(comfy_hosts.HOW_TO_GET_ONE)


def pytest_report_header() -> str:
    if not hosts:
        return f"HOST TESTS SKIPPED: {comfy_hosts.HOW_TO_GET_ONE}"
    return f"ComfyUI {'.'.join(map(str, comfy_hosts.version(hosts[0])))} at {hosts[0]}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/host/" in str(item.path):
            item.add_marker(pytest.mark.host)
