"""Run the units one after the other, each in a process of its own with a time of its own, the most wanted first.

    python -P benchmarks/gpu/runner.py [--out runs/gpu] [--part a|b|c|d|e|UNIT ...] [--cpu] [--tiny] [--seconds 480] [--list]

Every unit appends its results to ``OUT/results.jsonl`` itself, so a cut-off run loses only the unit that was running.
The units' output goes to ``OUT/log.txt``. The whole run ends ``--seconds`` after its start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from records import FILE, UNIT, Records  # noqa: E402  after their folder is on the path
from units import PARTS, UNITS, Unit, chosen  # noqa: E402

LEAST = 15
"""Seconds below which no unit is started: importing torch and the host takes most of them."""

ON_EVERY_HOST = ("parity", "parity-dynamic-vram")
"""Units that are run again on the further hosts that were packed."""

SLOWER_ON_A_CPU = 8


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results; lines are appended")
    parser.add_argument("--part", nargs="+", default=[], metavar="NAME", help="only these parts or units")
    parser.add_argument("--cpu", action="store_true", help="measure on the CPU; the figures say so")
    parser.add_argument("--tiny", action="store_true", help="small networks and few rounds: tries the program itself")
    parser.add_argument("--seconds", type=float, help="for everything, from the start (480; with --cpu 3600)")
    parser.add_argument("--list", action="store_true", help="name the units and end")
    parser.add_argument("--work", type=Path, help="folder that run.sh set up")
    parser.add_argument("--manifest", type=Path, help="what was packed")
    parser.add_argument("--started", type=float, default=time.time(), help="when the run began, seconds since 1970")
    return parser.parse_args()


@dataclass(frozen=True)
class Host:
    """A ComfyUI to measure, and the commit of the checkout beside it."""

    folder: Path
    title: str
    commit: str


def hosts(options: argparse.Namespace) -> list[Host]:
    """The packed hosts, or the newest that is installed here.

    Raises:
        SystemExit: none is found.
    """
    if options.work and options.manifest:
        packed = json.loads(options.manifest.read_text())
        commit = packed["commit"]
        return [Host(options.work / "hosts" / host["folder"], host["title"], commit) for host in packed["hosts"]]
    sys.path.insert(0, str(ROOT / "tools"))
    import comfy_hosts

    found = comfy_hosts.find_hosts()[:1]
    if not found:
        raise SystemExit(comfy_hosts.HOW_TO_GET_ONE)
    return [Host(host, comfy_hosts.title(host), "this checkout") for host in found]


def environment(unit: str, host: Host, results: Path) -> dict[str, str]:
    """A unit's environment: this folder, the other benchmarks and the tests' helpers are on its path."""
    folders = [HERE, HERE.parent, ROOT / "tests" / "support", ROOT / "tools"]
    paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "COMFYUI_PATH": str(host.folder),
        "GPU_KIT_HOST": host.title,
        "GPU_KIT_COMMIT": host.commit,
        FILE: str(results),
        UNIT: unit,
    }


def run(name: str, unit: Unit, host: Host, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run one unit for at most some seconds.

    Args:
        name: of the unit, with the host's where that is not the first.
        unit: what to run.
        host: on what.
        options: of the whole run.
        seconds: that it may take.

    Returns:
        Its status (``done``, ``failed`` or ``cut``), seconds, and the last lines of its output if it failed.
    """
    out, started = options.out.resolve(), time.monotonic()
    command = [sys.executable, "-P", str(HERE / unit.script), *unit.arguments, "--out", str(out)]
    command += ["--seconds", f"{seconds:.0f}", *["--cpu"] * options.cpu, *["--tiny"] * options.tiny]
    log = out / "log.txt"
    with log.open("ab") as file:
        file.write(f"\n=== {name}\n".encode())
        file.flush()
        begin = file.tell()
        # A group of its own, so that a unit's own processes end with it; not a session, so that all end with this one.
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment(name, host, out / "results.jsonl"), stdout=file,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=os.setpgrp,
        )  # fmt: skip
        try:
            status = "done" if child.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "cut"
        finally:
            end(child)
    result: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - started, 1)}
    if status == "failed":
        said = log.read_bytes()[begin:].decode(errors="replace")
        result |= {"exit": child.returncode, "said": said.strip().splitlines()[-12:]}
    return result


def end(child: subprocess.Popen[bytes]) -> None:
    """End a unit and its processes, first by a request."""
    for request, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, request)
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        if not group_lives(child.pid):
            return
        time.sleep(0.5)


def group_lives(group: int) -> bool:
    """Return whether a process group still has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def work_list(options: argparse.Namespace, available: list[Host]) -> list[tuple[Unit, Host]]:
    """Units and the hosts that they run on; the further hosts come last in each choice."""
    units = chosen(options.part)
    first, *others = available
    again = [(unit, host) for host in others for unit in units if unit.name in ON_EVERY_HOST]
    return [*((unit, first) for unit in units if unit.part != "e"), *again,
            *((unit, first) for unit in units if unit.part == "e")]  # fmt: skip


def stop(_signal: int, _frame: object) -> None:
    raise SystemExit("stopped")


def main() -> int:
    options = arguments()
    if options.list:
        for unit in UNITS:
            print(f"{unit.part}  {unit.name:22}{unit.seconds:4} s  {PARTS[unit.part]}")
        return 0
    try:
        available = hosts(options)
        work = work_list(options, available)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    signal.signal(signal.SIGTERM, stop)
    options.out.mkdir(parents=True, exist_ok=True)
    total = options.seconds or (3600 if options.cpu else 480)
    factor = SLOWER_ON_A_CPU if options.cpu else 1
    failed = 0
    for unit, host in work:
        left = options.started + total - time.time()
        name = unit.name if host is available[0] else f"{unit.name}@{host.folder.name}"
        if left < LEAST:
            result: dict[str, Any] = {"status": "no time", "seconds": 0.0}
        else:
            result = run(name, unit, host, options, min(unit.seconds * factor, left))
        Records(options.out / "results.jsonl", name).write("unit", host=host.title, part=unit.part, **result)
        failed += result["status"] == "failed"
        print(f"{result['status']:8}{result['seconds']:7.1f} s  {name}", flush=True)
        for line in result.get("said", []):
            print(f"    {line}", flush=True)
    print(f"results: {options.out / 'results.jsonl'}; {time.time() - options.started:.0f} s in all")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
