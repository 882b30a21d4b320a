"""Run the tests under coverage.py and print the branches of ``blending/``, ``nodes/`` and ``training/`` that no test takes.

``make coverage`` runs the three tiers that test them in this process; ``coverage_report.py TIER...`` runs the named ones. Code
that runs only in other processes (kills, several processes, the server) is reported as not covered.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from comfy_hosts import find_hosts

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("blending", "nodes", "training")
TIERS = ("blending", "training", "host")


def run(*words: str, **environment: str) -> int:
    """Run coverage.py with these arguments; returns its exit status."""
    command = [sys.executable, "-P", "-m", "coverage", *words]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=False).returncode


def main() -> int:
    tiers = sys.argv[1:] or [tier for tier in TIERS if tier != "host" or find_hosts()]
    sources = ",".join(str(ROOT / name) for name in MEASURED)
    run("erase")
    failed = []
    for tier in tiers:
        # One thread, because the networks are too small for more.
        options = ["--branch", "--parallel-mode", f"--source={sources}", "-m", "pytest", "-q", "-m", "not full"]
        if run("run", *options, f"tests/{tier}", OMP_NUM_THREADS="1"):
            failed.append(tier)
    run("combine", "--quiet")
    run("report", "--show-missing", "--skip-covered", "--skip-empty")
    skipped = [tier for tier in TIERS if tier not in tiers]
    if skipped:
        print(f"Without {', '.join(skipped)}: what only these reach shows as uncovered.")
    if failed:
        print(f"FAILED tests in: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
