"""Run every tier of the tests that can run here, fast ones first, and say plainly what could not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from comfy_hosts import HOW_TO_GET_ONE, find_hosts, version

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_HOST = ("blending", "training", "miniature", "evaluation")
ON_EVERY_HOST = ("host",)
ON_THE_NEWEST = ("server", "browser")


def pytest(tiers: tuple[str, ...], host: Path | None = None) -> bool:
    """Run some test folders in one process; whether they passed."""
    folders = [f"tests/{tier}" for tier in tiers if any((ROOT / "tests" / tier).glob("test_*.py"))]
    if not folders:
        return True
    environment = dict(os.environ) if host is None else os.environ | {"COMFYUI_PATH": str(host)}
    label = ", ".join(folders) + (f" on ComfyUI {'.'.join(map(str, version(host)))}" if host else "")
    print(f"\n=== {label}", flush=True)
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", "not full", "--durations=5", *folders]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def main() -> int:
    hosts = find_hosts()
    if not hosts and os.environ.get("CI") == "true":
        print(HOW_TO_GET_ONE, file=sys.stderr)
        return 1
    passed = pytest(WITHOUT_HOST)
    for host in hosts:
        passed &= pytest(ON_EVERY_HOST, host)
    if hosts:
        passed &= pytest(ON_THE_NEWEST, hosts[0])
    else:
        print(f"\nHOST TESTS SKIPPED: {HOW_TO_GET_ONE}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
