"""`make matrix` runs the browser tests on every front end in ``~/frontends``, and names those that are missing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import comfy_server
import matrix
import pytest


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, dict[str, str]]]:
    """The tiers that `make matrix` starts in a home folder with one front end, and their environments. None of them runs."""
    started: list[tuple[str, dict[str, str]]] = []

    def note(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        (tier,) = [part for part in command if part.startswith("tests/")]
        started.append((tier, env))
        return subprocess.CompletedProcess(command, 0)

    root = tmp_path / "frontends" / matrix.FRONT_ENDS[0] / "comfyui_frontend_package" / "static"
    root.mkdir(parents=True)
    (root / "index.html").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["matrix.py"])
    monkeypatch.setattr(matrix, "find_hosts", list)
    monkeypatch.setattr(subprocess, "run", note)
    return started


def test_the_browser_tests_run_on_the_front_end(
    runs: list[tuple[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    matrix.main()
    ((tier, environment),) = runs
    assert tier == "tests/browser"
    monkeypatch.setenv("COMFYUI_FRONT_END", environment["COMFYUI_FRONT_END"])
    root = comfy_server.front_end_root()  # what the tests' server is started with
    assert root == tmp_path / "frontends" / matrix.FRONT_ENDS[0] / "comfyui_frontend_package" / "static"


def test_a_missing_front_end_is_named() -> None:
    (missing,) = [how for name, how in matrix.missing([], []) if name == f"front end {matrix.FRONT_ENDS[0]}"]
    assert missing.startswith("pip install --no-deps --target")
