"""Claims of units of work: exactly one holder, stale ones are overtaken, work is spread by cost."""

from __future__ import annotations

import heapq
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusion_blend.artifacts.claims import Claims

HOLD = """
import sys, time
from pathlib import Path
from diffusion_blend.artifacts.claims import Claims
claim = Claims(Path(sys.argv[1]), float(sys.argv[2])).take("unit")
print("held" if claim else "refused", flush=True)
time.sleep(60)
"""


def holder(folder: Path, expiry: float = 60.0) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(expiry)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_claim_has_one_holder_and_can_be_given_back(tmp_path: Path) -> None:
    first, second = Claims(tmp_path, 60), Claims(tmp_path, 60)
    claim = first.take("unit")
    assert claim is not None and second.take("unit") is None and first.take("unit") is None
    assert second.take("other") is not None
    claim.release()
    again = second.take("unit")
    assert again is not None
    again.release()
    assert [file.name for file in tmp_path.iterdir()] == ["other.0"]


def test_a_killed_holder_on_this_machine_is_overtaken_at_once_by_exactly_one(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert Claims(tmp_path, 60).take("unit") is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    claims = [Claims(tmp_path, 60).take("unit") for _ in range(3)]
    held = [claim for claim in claims if claim is not None]
    assert len(held) == 1
    held[0].release()
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_holder_elsewhere_expires_and_its_late_release_leaves_the_next_claim_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Claims(tmp_path, 1e6).take("unit")  # touched every 250,000 s: as good as stopped
    assert claim is not None
    monkeypatch.setattr("diffusion_blend.artifacts.claims._place", lambda: {"host": "another", "processes": "x"})
    now = [0.0]
    monkeypatch.setattr("diffusion_blend.artifacts.claims.time", type("Clock", (), {"monotonic": lambda: now[0]}))
    others = Claims(tmp_path, 100.0)
    assert others.take("unit") is None
    now[0] = 99.0
    assert others.take("unit") is None
    os.utime(claim.files[-1], ns=(1, 1))  # a sign of life starts the time again
    now[0] = 150.0
    assert others.take("unit") is None
    now[0] = 251.0
    overtaken = others.take("unit")
    assert overtaken is not None and others.take("unit") is None
    overtaken.release()
    fresh = others.take("unit")
    claim.release()
    assert fresh is not None and Claims(tmp_path, 100.0).take("unit") is None


def test_every_unit_is_done_once_and_those_of_a_failure_go_to_the_others(tmp_path: Path) -> None:
    done: list[int] = []
    units = list(range(6))

    def each() -> Any:
        return Claims(tmp_path, 60).each(units, str, done.__contains__, wait=lambda seconds: None)

    first, second = each(), each()
    assert next(first) == 0 and next(second) == 1
    done.append(1)
    first.close()  # it fails in the middle of unit 0
    for unit in second:
        done.append(unit)
    assert sorted(done) == units and done[-1] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_waiting_process_takes_over_what_another_never_finishes(tmp_path: Path) -> None:
    process = holder(tmp_path)
    done: list[str] = []

    def wait(seconds: float) -> None:
        process.kill()
        process.wait()

    for unit in Claims(tmp_path, 60).each(["unit", "more"], str, done.__contains__, wait):
        done.append(unit)
    assert done == ["more", "unit"]


def makespan(folder: Path, costs: list[float], workers: int) -> float:
    """When the last of several workers is done, with the real claims and a simulated clock."""
    done: set[int] = set()

    class Idle(Exception):
        pass

    def idle(seconds: float) -> None:
        raise Idle

    order = range(len(costs))
    takers = [Claims(folder, 60).each(order, str, done.__contains__, idle) for _ in range(workers)]
    queue: list[tuple[float, int, int | None]] = [(0.0, worker, None) for worker in range(workers)]
    end = 0.0
    while queue:
        now, worker, finished = heapq.heappop(queue)
        end = max(end, now)
        if finished is not None:
            done.add(finished)
        try:
            unit = next(takers[worker])
        except (Idle, StopIteration):
            continue
        heapq.heappush(queue, (now + costs[unit], worker, unit))
    assert done == set(order)
    return end


def test_four_processes_are_busy_with_the_papers_mix_of_methods(tmp_path: Path) -> None:
    """Base, blend of two at five preferences, stochastic and CoDe with 20 candidates; 8 units of each point."""
    points = [1.0] + [3.0] * 5 + [2.0] * 5 + [20.0] * 5
    costs = sorted((cost for cost in points for _ in range(8)), reverse=True)
    busy = sum(costs) / (4 * makespan(tmp_path / "most", costs, 4))
    assert busy >= 0.9
    strided = max(sum(cost for cost in points[rank::4]) for rank in range(4)) * 8  # one rank gets all of CoDe
    assert sum(costs) / (4 * strided) < busy


def test_waiting_is_short_for_short_expiry(tmp_path: Path) -> None:
    seconds: list[float] = []
    taken = Claims(tmp_path, 2.0).take("unit")

    def wait(time_s: float) -> None:
        seconds.append(time_s)
        assert taken is not None
        taken.release()

    assert list(Claims(tmp_path, 2.0).each(["unit"], str, lambda unit: False, wait)) == ["unit"]
    assert seconds == [0.5]
