"""A small sweep of every method, and its numbers as recorded in ``tests/evaluation/recorded_sweep.json``.

``python -P tests/support/recorded_sweep.py`` records them again. Do so only for an intended change of the numbers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from sweeps import settings, sweep, write_adapter
from tiny_pipelines import save_tiny_sd

RECORD = Path(__file__).parents[1] / "evaluation/recorded_sweep.json"
METHODS = (
    "base", "blend", "stochastic", "stochastic-independent", "soup", "early", "factor-soup", "msdda", "morl", "code", "rgg",
)  # fmt: skip


def measure(folder: Path) -> list[dict[str, Any]]:
    """Return each picture's method, preference, KL scale, recipe, rewards, KL and calls, in the order of the table."""
    torch.set_num_threads(1)
    base = save_tiny_sd(folder / "base", prediction_type="epsilon")
    adapters = {name: write_adapter(folder, base, name, seed) for seed, name in enumerate(("a", "b"))}
    mixture = write_adapter(folder, base, "mixture", 5)
    over: dict[str, Any] = {
        "methods": list(METHODS),
        "weights": [[1.0, 0.0], [0.25, 0.75]],
        "kl_scales": [0.0, 0.5, 1.0],
        "etas": {"a": 0.4},
        "morl": {"0.25,0.75": str(mixture)},
        "code_candidates": 2,
        "code_block": 2,
        "batch": 2,
    }
    ready = sweep(settings(folder / "out", base, adapters, **over, **{"images_per_point": 3, "steps": 3}))
    rows = ready.run()
    folders = {(point.method, point.weights, point.kl_scale): point.folder for point in ready.points}
    keep = ("method", "w_a", "w_b", "kl_scale", "image", "prompt", "number", "a", "b", "kl", "calls", "kl_calls")
    found = []
    for row in rows:
        weights = () if row["w_a"] is None else (row["w_a"], row["w_b"])
        recipe = folders[row["method"], weights, row["kl_scale"]]
        # The recipe of morl holds the checksum of a file, which depends on the versions of libraries.
        recipe = recipe.partition("-")[0] if recipe.startswith("morl") else recipe
        found.append({**{name: row[name] for name in keep}, "recipe": recipe})
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        RECORD.write_text(json.dumps(measure(Path(name)), indent=0) + "\n")
