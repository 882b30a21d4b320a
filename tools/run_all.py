"""Run every tier of the tests that can run here, and say plainly what could not.

The fast tier comes first and alone; the others then share the cores, one process and one thread each (these networks are
too small to gain from threads), and each prints its report when it is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from comfy_hosts import HOW_TO_GET_ONE, find_hosts, version

ROOT = Path(__file__).resolve().parents[1]
FAST = ("tree", "blending")
WITHOUT_HOST = ("training", "miniature", "evaluation")
ON_EVERY_HOST = ("host",)
ON_THE_NEWEST = ("server", "browser")


@dataclass(frozen=True)
class Job:
    """Some test folders in one process.

    Args:
        tiers: folders below tests/.
        host: the ComfyUI they run against, None for those that need none or find their own.
        marks: pytest's -m.
    """

    tiers: tuple[str, ...]
    host: Path | None = None
    marks: str = "not full"

    @property
    def folders(self) -> list[str]:
        return [f"tests/{tier}" for tier in self.tiers if any((ROOT / "tests" / tier).glob("test_*.py"))]

    @property
    def name(self) -> str:
        return ", ".join(self.folders) + (f" on ComfyUI {'.'.join(map(str, version(self.host)))}" if self.host else "")

    def run(self) -> tuple[bool, str]:
        """Whether all passed, and pytest's report."""
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        if self.host is not None:
            environment["COMFYUI_PATH"] = str(self.host)
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", self.marks, "--durations=5", *self.folders]
        start = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode == 0, f"\n=== {self.name} ({time.monotonic() - start:.0f} s)\n{done.stdout}"


def main() -> int:
    hosts = find_hosts()
    if not hosts and os.environ.get("CI") == "true":
        print(HOW_TO_GET_ONE, file=sys.stderr)
        return 1
    jobs = [Job(ON_EVERY_HOST, host) for host in hosts[:1]]
    jobs += [Job(ON_EVERY_HOST, host, "not full and not newest") for host in hosts[1:]]
    jobs += [Job(ON_THE_NEWEST, hosts[0])] if hosts else []
    jobs += [Job((tier,)) for tier in WITHOUT_HOST]
    passed, report = Job(FAST).run()
    print(report, flush=True)
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        for future in as_completed([pool.submit(job.run) for job in jobs if job.folders]):
            good, report = future.result()
            passed &= good
            print(report, flush=True)
    if not hosts:
        print(f"\nHOST TESTS SKIPPED: {HOW_TO_GET_ONE}")
    print("\nEvery tier passed." if passed else "\nAt least one tier FAILED.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
