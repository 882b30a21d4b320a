"""Run the host tests on every supported ComfyUI, one after the other, and print each version's result.

``make matrix`` takes every host that `comfy_hosts` finds and every folder of ``~/hosts``; ``tools/matrix.py PATH...``
takes the named ones. The full report of each run is in the folder that is printed last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from comfy_hosts import find_hosts, is_host, title, version

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ("0.3.64", "0.8.0", "0.14.1", "0.20.1", "0.28.0", "0.33.0")
"""The oldest supported version, one of every half year since, and the newest."""


@dataclass(frozen=True)
class Row:
    """One version's result.

    Args:
        version: of the host.
        tests, failures, errors, skipped: pytest's counts; ``tests`` is their total.
        seconds: wall time.
        code: pytest's exit status.
    """

    version: str
    tests: int
    failures: int
    errors: int
    skipped: int
    seconds: float
    code: int

    @property
    def passed(self) -> int:
        return self.tests - self.failures - self.errors - self.skipped

    def __str__(self) -> str:
        wrong = self.failures + self.errors
        return f"| {self.version} | {self.passed} | {wrong} | {self.skipped} | {self.seconds:.0f} s | {self.code} |"


def run(host: Path, reports: Path, options: list[str]) -> Row:
    """Run the host tier on one host; its report goes to ``reports``."""
    name = title(host).removeprefix("ComfyUI ")
    result = reports / f"{name}.xml"
    command = [sys.executable, "-P", "-m", "pytest", "-m", "not full", f"--junitxml={result}", "tests/host", *options]
    environment = os.environ | {"COMFYUI_PATH": str(host), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    start = time.monotonic()
    with (reports / f"{name}.txt").open("wb") as report:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, stdout=report, stderr=subprocess.STDOUT
        ).returncode
    suite = ElementTree.parse(result).getroot().find("testsuite") if result.exists() else None
    counts = [
        int(suite.get(count, 0)) if suite is not None else 0 for count in ("tests", "failures", "errors", "skipped")
    ]
    return Row(name, *counts, seconds=time.monotonic() - start, code=done)


def hosts_of(arguments: list[str]) -> list[Path]:
    """Return the hosts for the run, oldest first: the named ones, or all that are found."""
    given = [Path(argument).expanduser().resolve() for argument in arguments]
    wrong = [str(path) for path in given if not is_host(path)]
    if wrong:
        raise SystemExit(f"No ComfyUI there: {', '.join(wrong)} (no comfyui_version.py).")
    hosts = given or [*find_hosts(), *(path for path in Path.home().glob("hosts/*") if is_host(path))]
    return sorted(dict.fromkeys(hosts), key=version)


def main() -> int:
    """Run the tests on every host; returns the exit status."""
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    hosts = hosts_of(paths)
    reports = Path(tempfile.mkdtemp(prefix="matrix-"))
    print("| ComfyUI | passed | failed | skipped | time | pytest's exit |\n|---|---|---|---|---|---|", flush=True)
    good = True
    for host in hosts:
        row = run(host, reports, options)
        good &= row.code == 0
        print(row, flush=True)
    missing = sorted(set(SUPPORTED) - {".".join(map(str, version(host))) for host in hosts})
    if missing and not paths:
        good = False
        for name in missing:
            where = f"git clone --branch v{name} https://github.com/comfyanonymous/ComfyUI ~/hosts/{name}"
            print(f"| {name} | not run: get it with `{where}` |")
    print(f"Reports: {reports}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
