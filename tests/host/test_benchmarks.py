"""The benchmarks run: their figures are made, and they are right where the answer is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.newest  # figures are reported for the newest version only

ROOT = Path(__file__).parents[2]


def run(program, *options):
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / program), *map(str, options)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_methods_of_fewer_calls_are_the_blend_where_they_blend_every_step(tmp_path):
    figures = tmp_path / "figures.json"
    methods = ("bare 3", "early 3", "cached 2", "rotating 1", "antithetic", "one uncond")
    run("below_m_calls.py", "--width", 64, "--steps", 3, "--adapters", 2, "--json", figures, "--methods", *methods)
    rows = json.loads(figures.read_text())["rows"]
    assert set(rows) == {"soup", *methods}
    assert rows["soup"]["of_soup"] == 1.0
    assert rows["bare 3"] == rows["early 3"] == {"calls": 2.0, "error": 0.0, "of_soup": 0.0}
    assert all(rows[name]["error"] > 0 for name in ("soup", "cached 2", "rotating 1", "antithetic", "one uncond"))
    assert {name: rows[name]["calls"] for name in ("cached 2", "antithetic", "one uncond")} == pytest.approx(
        {"cached 2": (3 + 1 + 3) / 3, "antithetic": 2.0, "one uncond": 1.5}
    )


def test_the_costs_of_all_ways_to_one_image_are_measured_and_drawn(tmp_path):
    """The benchmark itself stops if the host's hooks or model swapping give another image than the blend."""
    figures, picture = tmp_path / "figures.json", tmp_path / "figure.png"
    options = ("--rounds", 1, "--steps", 1, "--size", 8, "--adapters", 2, "--no-batched", "--others", "--threads", 1)
    run("sampling.py", *options, "--json", figures)
    (cell,) = json.loads(figures.read_text())["cells"]
    assert cell["figures"]["base"]["ratio"] == 1.0
    assert {"blend of 2, sequential", "hooks wired by hand, 2", "naive swapping, 2"} < set(cell["figures"])
    assert all(row["seconds_per_step"] > 0 for row in cell["figures"].values())
    counted = {name: row["counted"] for name, row in cell["figures"].items()}
    adapter = cell["costs"]["flops_per_adapter"] / cell["costs"]["base_flops"]
    assert counted["soup of 4"] - 1 == pytest.approx(4 * adapter)
    run("speed_figure.py", picture, figures)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_kinds_of_update_are_measured_and_compared_with_another_version_of_the_code():
    """The comparison itself stops if the two versions give other results; here both are this checkout."""
    small = ("--width", 64, "--tokens", 4, "--rounds", 3)
    kinds = run("update_kinds.py", *small)
    assert {"low rank 16", "Kronecker, factor 4", "DoRA", "bias difference"} < named(kinds)
    before = run("update_kinds.py", *small, "--before", ROOT / "blending")
    assert named(before) == {"stochastic", "soup", "blend", "stochastic, per image"}


def named(output):
    """Return the first column of a printed table."""
    return {line[:28].strip() for line in output.splitlines()[1:]}
