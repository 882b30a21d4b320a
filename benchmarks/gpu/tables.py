"""Tables of what was measured, as Markdown text. A figure that was not measured is a dash."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

Line = dict[str, Any]
GIB = 2**30

TARGETS = {
    "stochastic of 4": 1.02,
    "soup of 4": 1.05,
    "blend of 2": 1.6,
    "blend of 3": 2.1,
    "blend of 4": 2.7,
}
"""Largest ratio to the base run of true-size SD 1.5 at 512 x 512, one image."""


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table of cells."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def small(value: float | None) -> str:
    """A number with two significant digits, or a dash."""
    return "-" if value is None else f"{value:.2g}"


def of(lines: Sequence[Line], what: str) -> list[Line]:
    """The lines of a kind."""
    return [line for line in lines if line["what"] == what]


def ratios(lines: Sequence[Line]) -> dict[str, list[float]]:
    """Variant -> each round's seconds divided by the base run's of the same round."""
    result: dict[str, list[float]] = defaultdict(list)
    for line in of(lines, "round"):
        for name, seconds in line["seconds"].items():
            result[name].append(seconds / line["seconds"]["base"])
    return dict(result)


def floor_seconds(lines: Sequence[Line], ceilings: Sequence[Line]) -> float | None:
    """The least seconds that a call of the base can take: its FLOPs and its weights' bytes at the card's measured rates."""
    costs, setting = of(lines, "costs"), of(lines, "setting")
    rates = {line["name"]: line for line in of(ceilings, "ceiling")}
    product = rates.get(f"matrix product, {setting[0]['dtype']}") if setting else None
    if not costs or product is None or "copy" not in rates:
        return None
    arithmetic = costs[0]["base_flops"] / product["flops_per_second"]
    return max(arithmetic, costs[0]["base_bytes"] / rates["copy"]["bytes_per_second"])


def ratio_table(lines: Sequence[Line], ceilings: Sequence[Line]) -> str:
    """Every variant of one network: ratio to the base, quartiles, calls, peak memory, distance from the blend."""
    variants, measured = {line["name"]: line for line in of(lines, "variant")}, ratios(lines)
    base_peak = variants.get("base", {}).get("peak_bytes")
    rows = []
    for name, line in variants.items():
        values = measured.get(name, [])
        median = statistics.median(values) if values else None
        quartiles = statistics.quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else []
        peak = line["peak_bytes"]
        rows.append([
            name, number(median), " - ".join(number(value) for value in quartiles) or "-", line["calls"],
            number(median / line["calls"] if median else None),
            number(peak / GIB if peak else None, 2), number(peak / base_peak if peak and base_peak else None),
            small(line.get("difference_to_blend")) + ("" if line["finite"] else " (not finite)"),
        ])  # fmt: skip
    columns = ["run", "ratio", "quartiles", "calls per step", "per call", "peak GiB", "of base", "distance from blend"]
    return table(columns, rows) + "\n" + "".join(f"{text}\n" for text in remarks(lines, ceilings))


def remarks(lines: Sequence[Line], ceilings: Sequence[Line]) -> list[str]:
    """What belongs to a table of ratios: seconds of the base and their floor, the adapters' memory, the switch."""
    rounds, setting = of(lines, "round"), of(lines, "setting")
    result = []
    if rounds and setting:
        seconds = statistics.median(line["seconds"]["base"] for line in rounds) / setting[0]["steps"]
        floor = floor_seconds(lines, ceilings)
        bound = f", at least {1000 * floor:.2f} ms by the card's measured rates" if floor else ""
        result.append(f"- Base: {1000 * seconds:.2f} ms a step{bound}; medians of {len(rounds)} rounds.")
    for line in of(lines, "costs"):
        share = line["adapter_bytes"] / line["base_bytes"]
        result.append(f"- Four adapters take {share:.2%} of the network's memory (target: at most 3 %).")
    for line in of(lines, "switch"):
        median = statistics.median(line["milliseconds"])
        result.append(f"- A new preference over {line['adapters']} adapters: {median:.2f} ms (target: below 5 ms).")
    return result


def target_table(lines: Sequence[Line]) -> str:
    """The targets of true-size SD 1.5, one image; of a blend the faster evaluation counts."""
    measured = {name: statistics.median(values) for name, values in ratios(lines).items()}
    rows = []
    for name, target in TARGETS.items():
        ways = {way: value for way, value in measured.items() if way == name or way.startswith(f"{name},")}
        if not ways:
            rows.append([name, target, "-", "not measured"])
            continue
        way, value = min(ways.items(), key=lambda item: item[1])
        rows.append([way, target, number(value), "reached" if value <= target else "missed"])
    for other in ("host's LoRA hooks", "swapping"):
        for count in (2, 3, 4):
            theirs = measured.get(f"{other}, {count}")
            ours = [measured[way] for way in measured if way.startswith(f"blend of {count},")]
            if theirs and ours:
                faster = "reached" if min(ours) < theirs else "missed"
                rows.append([f"blend of {count} against {other}", "faster", f"{min(ours) / theirs:.3f} of it", faster])
    return table(["run", "target", "measured", ""], rows)


def parity_table(lines: Sequence[Line]) -> str:
    """Every case of parity."""
    rows = [
        [line["mode"], line["dtype"], line["architecture"], line["evaluation"], small(line["error"]),
         small(line["own_error"]), small(line["effect"]), line.get("patcher", "-"), "yes" if line["passed"] else "NO"]
        for line in of(lines, "parity")
    ]  # fmt: skip
    columns = ["mode", "weights", "network", "evaluation", "error", "the host's own", "effect", "patcher", "passed"]
    return table(columns, rows)


def way(line: Line) -> str:
    """A training's algorithm, with the steps of its gradient and the checkpointing of the network."""
    steps = {None: "", 0: ", gradient through all steps"}.get(line["gradient_steps"], f"-{line['gradient_steps']}")
    return line["algorithm"] + steps + (", checkpointing" if line["gradient_checkpointing"] else "")


def trainer_table(lines: Sequence[Line]) -> str:
    """Speed and memory of the trainer."""
    rows = []
    for line in of(lines, "trainer"):
        peak = number(line["peak_bytes"] / GIB, 2) if line.get("peak_bytes") else "-"
        limit = number(line["limit_bytes"] / GIB, 1) if line["limit_bytes"] else "-"
        rows.append([
            line["case"], line["network"], line["pixels"], way(line), line["steps"], line["samples"], line["batch"],
            number(line.get("samples_per_second")), "out of memory" if line["out_of_memory"] else peak, limit,
        ])  # fmt: skip
    columns = ["case", "network", "pixels", "algorithm", "steps", "samples", "batch", "samples per second", "peak GiB",
               "limit GiB"]  # fmt: skip
    return table(columns, rows)


def training_table(lines: Sequence[Line]) -> str:
    """The long trainings: the watched reward before and after."""
    rows = []
    for line in of(lines, "training"):
        first, last = line.get("first") or {}, line.get("last") or {}
        rows.append([
            line["name"], line["status"], number(line.get("seconds"), 0), number(first.get("reward")),
            number(last.get("reward")), number(last.get("iteration"), 0), line["bundle"],
        ])  # fmt: skip
    return table(["training", "status", "seconds", "reward before", "after", "iterations", "file"], rows)


def tests_text(lines: Sequence[Line]) -> str:
    """The host tests: numbers, and the names of those that failed."""
    tests = of(lines, "test")
    counts = {outcome: sum(line["outcome"] == outcome for line in tests) for outcome in ("passed", "failed", "skipped")}
    ended = of(lines, "tests")
    whole = "all of them ran" if ended and ended[-1]["all_run"] else "the time ended before all had run"
    text = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped; {whole}.\n"
    for line in tests:
        if line["outcome"] == "failed":
            text += f"\n- `{line['name']}`: {' '.join(line['said'])}"
    return text + ("\n" if counts["failed"] else "")
