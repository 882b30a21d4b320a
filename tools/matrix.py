"""Run the extension's tests on every supported ComfyUI and front end, one after the other, and print a table of the results.

``make matrix`` runs the host tests on every host that `comfy_hosts` finds and on every folder of ``~/hosts``. It runs the
browser tests on every front end in ``~/frontends`` (``~/frontends/1.58.1`` holds an unpacked ``comfyui-frontend-package``).
``tools/matrix.py PATH...`` runs on the given hosts alone. Each run's whole report is written beside the table, in the folder
that is printed last.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from comfy_hosts import find_hosts, is_host, title, version

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = ("0.3.64", "0.8.0", "0.14.1", "0.20.1", "0.28.0", "0.33.0")
"""The oldest version that is supported, one of every half year since, and the newest."""
FRONT_ENDS = ("1.58.1",)
"""Front ends newer than the one that the newest host pins, which `make test` runs on."""


@dataclass(frozen=True)
class Row:
    """One version's result.

    Args:
        version: of the host, or of the front end.
        tests, failures, errors, skipped: pytest's counts; ``tests`` is all of them.
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


def run_host(host: Path, reports: Path, options: list[str]) -> Row:
    """Run the host tier on one host; its report goes to ``reports``."""
    name = title(host).removeprefix("ComfyUI ")
    return run(name, "tests/host", {"COMFYUI_PATH": str(host)}, reports, options)


def run_front_end(folder: Path, reports: Path, options: list[str]) -> Row:
    """Run the browser tier on one front end; its report goes to ``reports``."""
    return run(f"front end {folder.name}", "tests/browser", {"COMFYUI_FRONT_END": str(folder)}, reports, options)


def run(name: str, tests: str, variables: dict[str, str], reports: Path, options: list[str]) -> Row:
    """Run a tier with environment variables of its own."""
    result = reports / f"{name}.xml"
    command = [sys.executable, "-P", "-m", "pytest", "-m", "not full", f"--junitxml={result}", tests, *options]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} | variables
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


def missing(hosts: list[Path], front_ends: list[Path]) -> list[tuple[str, str]]:
    """The supported versions that are not here, each with the command that gets it."""
    found = {".".join(map(str, version(host))) for host in hosts}
    url = "https://github.com/comfyanonymous/ComfyUI"
    clones = [(name, f"git clone --branch v{name} {url} ~/hosts/{name}") for name in SUPPORTED if name not in found]
    package = "comfyui-frontend-package"
    downloads = [
        (f"front end {name}", f"pip install --no-deps --target ~/frontends/{name} {package}=={name}")
        for name in FRONT_ENDS
        if name not in {folder.name for folder in front_ends}
    ]
    return sorted(clones) + downloads


def main() -> int:
    """Run the tests on every host; returns the exit status."""
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    hosts = hosts_of(paths)
    reports = Path(tempfile.mkdtemp(prefix="matrix-"))
    print("| ComfyUI | passed | failed | skipped | time | pytest's exit |\n|---|---|---|---|---|---|", flush=True)
    good = True
    front_ends = [] if paths else sorted(Path.home().glob("frontends/*"))
    rows = [partial(run_host, host) for host in hosts] + [partial(run_front_end, folder) for folder in front_ends]
    for make_row in rows:
        row = make_row(reports, options)
        good &= row.code == 0
        print(row, flush=True)
    for name, how in [] if paths else missing(hosts, front_ends):
        good = False
        print(f"| {name} | not run: get it with `{how}` |")
    print(f"Reports: {reports}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
