"""Run every test tier that can run here, and name those that cannot.

The fast tiers come first and alone. The others then share the cores, with one process and one thread each, because these
networks are too small to gain from threads. Each tier prints its report when it is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from comfy_hosts import HOW_TO_GET_ONE, find_hosts, title

ROOT = Path(__file__).resolve().parents[1]
FAST = ("tree", "blending")
ON_EVERY_HOST = ("host",)
ON_THE_NEWEST = ("server", "browser")
# Hosts other than the newest share the many cases of a test. `make matrix` runs all cases on all hosts.
SHARE_ON_OTHERS = 5
# The tiers that take longest start first, so that no long one is left over at the end.
LONGEST_FIRST = ("training", "evaluation", "miniature")


def tiers_without_host() -> list[str]:
    """Return all tiers that need no host and are not fast, the longest first."""
    tiers = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    rest = tiers - {*FAST, *ON_EVERY_HOST, *ON_THE_NEWEST}
    return [*(tier for tier in LONGEST_FIRST if tier in rest), *sorted(rest - set(LONGEST_FIRST))]


@dataclass(frozen=True)
class Job:
    """Some test folders in one process.

    Args:
        tiers: folders below tests/.
        host: the ComfyUI that they run against; None for tiers that need none.
        marks: pytest's -m.
        share: of tests with many cases, run the first case and one in this many of the others.
    """

    tiers: tuple[str, ...]
    host: Path | None = None
    marks: str = "not full"
    share: int = 1

    @property
    def name(self) -> str:
        """Return the folders and the host, for the report."""
        return ", ".join(f"tests/{tier}" for tier in self.tiers) + (f" on {title(self.host)}" if self.host else "")

    def run(self) -> tuple[bool, str]:
        """Run the tests; returns whether all passed, and pytest's report."""
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        if self.host is not None:
            environment["COMFYUI_PATH"] = str(self.host)
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", self.marks, "--durations=15"]
        command += [
            *([f"--one-case-in={self.share}"] if self.share > 1 else []),
            *(f"tests/{tier}" for tier in self.tiers),
        ]
        start = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode == 0, f"\n=== {self.name} ({time.monotonic() - start:.0f} s)\n{done.stdout}"


def jobs(hosts: list[Path]) -> list[Job]:
    """Return all jobs except the fast tiers, in the order of their start."""
    on_hosts = [Job(ON_EVERY_HOST, host) for host in hosts[:1]]
    on_hosts += [Job(ON_EVERY_HOST, host, "not full and not newest", SHARE_ON_OTHERS) for host in hosts[1:]]
    with_server = [Job(ON_THE_NEWEST, hosts[0])] if hosts else []
    return [*(Job((tier,)) for tier in tiers_without_host()[:1]), *on_hosts, *with_server,
            *(Job((tier,)) for tier in tiers_without_host()[1:])]  # fmt: skip


def main() -> int:
    """Run the tiers; returns the exit status."""
    hosts = find_hosts()
    if not hosts and os.environ.get("CI") == "true":
        print(HOW_TO_GET_ONE, file=sys.stderr)
        return 1
    passed, report = Job(FAST).run()
    print(report, flush=True)
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        for future in as_completed([pool.submit(job.run) for job in jobs(hosts)]):
            good, report = future.result()
            passed &= good
            print(report, flush=True)
    if not hosts:
        print(f"\nHOST TESTS SKIPPED: {HOW_TO_GET_ONE}")
    print("\nEvery tier passed." if passed else "\nAt least one tier FAILED.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
