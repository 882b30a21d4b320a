"""Sweeps of several trainings as one table: intervals and tests over the trainings, by scipy's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusion_blend import command
from diffusion_blend.evaluation.sweep.pooling import pool, read_differences, read_objectives
from scipy import stats

EVEN, LEFT = (0.5, 0.5), (0.75, 0.25)


def write(folder: Path, blend: dict[Any, float], trained: dict[Any, float]) -> Path:
    """A summary with one row for each method and preference."""
    tables = {
        "against blend": [row(method, w, "r(w) - blend", d) for (method, w), d in blend.items()],
        "against trained": [row(method, w, "r(w) - MORL, sd", d) for (method, w), d in trained.items()],
    }
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(tables), encoding="utf-8")
    return folder


def row(method: str, weights: tuple[float, ...], name: str, difference: float) -> dict[str, Any]:
    return {"method": method, "weights": list(weights), "kl_scale": 1.0, name: [difference, 0.1]}


def p(values: list[float], mean: float, alternative: Any) -> float:
    tested: Any = stats.ttest_1samp(values, mean, alternative=alternative)
    return float(tested.pvalue)


def test_trainings_are_the_sample_of_intervals_and_tests() -> None:
    even, left = [0.02, -0.01, 0.01], [0.3, 0.1, 0.2]
    sweeps = [{"soup": {EVEN: a, LEFT: b}} for a, b in zip(even, left, strict=True)]
    found: Any = {entry["weights"]: entry for entry in pool(sweeps, 0.05)}
    both = [(a + b) / 2 for a, b in zip(even, left, strict=True)]
    for weights, values in ((EVEN, even), (LEFT, left), (None, both)):
        low, high = stats.t.interval(0.95, 2, stats.tmean(values), stats.sem(values))
        mean, half = found[weights]["difference"]
        assert (mean - half, mean + half) == pytest.approx((low, high))
        not_below = p(values, -0.05, "greater")
        assert found[weights]["p not below"] == pytest.approx(not_below)
        equal = max(not_below, p(values, 0.05, "less"))
        assert found[weights]["p equal"] == pytest.approx(equal)


def test_only_what_every_sweep_has_is_pooled() -> None:
    first = {"soup": {EVEN: 0.0, LEFT: 1.0}, "cross": {EVEN: 2.0}}
    found = pool([first, {"soup": {EVEN: 1.0}, "early": {EVEN: 3.0}}])
    assert [(entry["method"], entry["weights"], entry["difference"][0]) for entry in found] == [
        ("soup", EVEN, 0.5),
        ("soup", None, 0.5),
    ]
    with pytest.raises(ValueError, match="share no method at a preference"):
        pool([first, {"early": {EVEN: 0.0}}])
    with pytest.raises(ValueError, match="no sweep is given"):
        pool([])
    with pytest.raises(ValueError, match="give each training once"):
        pool([first, {"soup": {EVEN: 1.0}}, dict(first)])


def test_the_command_prints_both_tables(tmp_path: Path, capsys: Any) -> None:
    given = [({("soup", EVEN): a}, {("soup", EVEN): a + 1, ("blend", EVEN): 1.0}) for a in (0.1, 0.2, 0.3)]
    folders = [write(tmp_path / str(number), *tables) for number, tables in enumerate(given)]
    files = [str(folders[0]), str(folders[1] / "summary.json"), str(folders[2])]
    assert command.main(["pool", *files]) == 0
    printed = capsys.readouterr().out
    assert "3 trainings" in printed
    half = stats.t.ppf(0.975, 2) * stats.sem([0.1, 0.2, 0.3])
    assert "r(w) less that of blend" in printed and f"| 0.5/0.5 | 0.20 ± {half:.2f} |" in printed
    assert f"1.20 ± {half:.2f} ({p([1.1, 1.2, 1.3], -0.05, 'greater'):.2f}) | 1.00 ± 0.00 (0.00) |" in printed


def test_differences_from_another_method(tmp_path: Path, capsys: Any) -> None:
    given = {("soup", EVEN): 0.1, ("stacked", EVEN): 0.3, ("stacked", LEFT): 0.5}
    folder = write(tmp_path / "sweep", given, {})
    assert command.main(["pool", str(folder), "--reference", "soup"]) == 0
    printed = capsys.readouterr().out
    assert "r(w) less that of soup" in printed and "| 0.5/0.5 | -0.10 | 0.20 |" in printed
    assert "0.75/0.25" not in printed
    assert command.main(["pool", str(folder), "--reference", "cross"]) == 1
    assert "--reference cross: the sweeps have blend, soup, stacked" in capsys.readouterr().err


def test_objectives_are_of_means_less_those_of_trained_adapters(tmp_path: Path, capsys: Any) -> None:
    values = {"morl": (1.0, 10.0), "stacked": (1.5, 20.0), "base": (0.0, 0.0)}
    rows = [
        {"method": method, "weights": list(EVEN), "kl_scale": 1.0, "r(w)": [r, 0.1], "KL": [kl, 0.1]}
        for method, (r, kl) in values.items()
    ]
    rows.append({"method": "stacked", "weights": list(LEFT), "kl_scale": 1.0, "r(w)": [1.0, 0.1], "KL": [None, None]})
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"means": rows}), encoding="utf-8")
    found = read_objectives(file, 0.02)
    assert found == {"stacked": {EVEN: pytest.approx(0.3)}, "base": {EVEN: pytest.approx(-0.8)}}
    assert command.main(["pool", str(file), "--kl_weight", "0.02"]) == 0
    assert "| 0.5/0.5 | 0.30 | -0.80 |" in capsys.readouterr().out
    file.write_text(json.dumps({"means": rows[1:]}), encoding="utf-8")
    assert command.main(["pool", str(file), "--kl_weight", "0.02"]) == 1
    assert "sweep morl with --measure_kl true" in capsys.readouterr().err
    assert command.main(["pool", str(file), "--kl_weight", "-1"]) == 1
    assert "--kl_weight is -1.0: it must be 0 or above" in capsys.readouterr().err


def test_files_of_something_else_are_refused_by_name(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "other.json"
    for content in ("{}", "[", '{"against blend": [{"method": "soup"}]}'):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="other.json is no summary of a sweep"):
            read_differences(file, "against blend")
    assert command.main(["pool", str(tmp_path / "none")]) == 1
    assert "none is no summary of a sweep" in capsys.readouterr().err


def test_other_kl_scales_and_settings_are_left_out(tmp_path: Path) -> None:
    rows = [row("soup", EVEN, "r(w) - blend", 0.5), row("soup", EVEN, "r(w) - blend", 9.0) | {"kl_scale": 2.0}]
    rows += [row("soup", LEFT, "r(w) - blend", 9.0) | {"settings": "eta 0"}]
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"against blend": rows}), encoding="utf-8")
    assert read_differences(tmp_path, "against blend") == {"soup": {EVEN: 0.5}}


def test_sweeps_of_other_settings_are_not_pooled(tmp_path: Path, capsys: Any) -> None:
    """Weights are places in the list of adapters, so its order counts, too."""
    settings = {"adapters": {"a": "1", "b": "2"}, "steps": 10, "eta": 1.0, "seed": 0}
    others = [{}, {"steps": 20}, {"adapters": {"b": "3", "a": "4"}}, {"adapters": {"a": "3", "b": "4"}, "seed": 1}]
    files = []
    for number, other in enumerate(others):
        folder = write(tmp_path / str(number), {("soup", EVEN): 0.1 * number}, {})
        tables = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({"settings": {**settings, **other}, **tables}))
        files.append(str(folder))
    old = str(write(tmp_path / "old", {("soup", EVEN): 0.7}, {}))
    assert command.main(["pool", files[0], files[1]]) == 1
    assert (
        f"steps is 10 in {files[0]} and 20 in {files[1]}: pool sweeps of the same settings" in capsys.readouterr().err
    )
    assert command.main(["pool", files[0], files[2]]) == 1
    assert "adapters is ['a', 'b'] in" in capsys.readouterr().err
    assert command.main(["pool", files[0], files[3], old]) == 0
