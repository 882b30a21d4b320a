"""Costs of the kinds of update on one layer, as ratios of interleaved calls in one process.

``python -P benchmarks/update_kinds.py`` prints the cost of each kind beside a Linear layer: the time of the layer with the update
less that of the layer alone, divided by the latter. ``--before FOLDER`` compares low-rank updates with an earlier version of
``blending/`` (the folder of a checkout) instead. Both versions run in turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusion_blend.blending import adapters, side_path, updates
from torch import Tensor, nn

RANK = 16


def random(*shape: int) -> Tensor:
    return torch.randn(*shape) / math.sqrt(shape[-1])


def kinds(width: int) -> dict[str, list[updates.Update]]:
    """Make one update of each kind for a square layer."""
    kronecker: dict[str, list[updates.Update]] = {
        f"Kronecker, factor {factor}": [
            updates.KroneckerProduct(random(factor, factor), random(width // factor, width // factor))
        ]
        for factor in (4, 8, 16)
    }
    bias = torch.zeros(width)
    return {
        f"low rank {RANK}": [updates.LowRank(random(RANK, width), random(width, RANK))],
        **kronecker,
        "Hadamard, of full rank": [
            updates.HadamardProduct(random(width, 32), random(32, width), random(width, 32), random(32, width))
        ],
        "DoRA": [
            updates.ScaledOutput(random(width), bias),
            updates.LowRank(random(RANK, width), random(width, RANK)),
        ],
        "OFT, 8 blocks": [updates.RotatedOutput(random(8, width // 8, width // 8), bias)],
        "full difference": [updates.Difference(random(width, width))],
        "bias difference": [updates.BiasDifference(random(width))],
    }


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def ratios(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> list[float]:
    """Time two calls in turns, the first of each round changing, and return second / first of every round."""
    found = []
    for number in range(rounds + 2):
        if number % 2:
            b, a = seconds(second), seconds(first)
        else:
            a, b = seconds(first), seconds(second)
        found.append(b / a)
    return found[2:]  # the first rounds make buffers


def summary(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def costs_of_kinds(width: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Return each kind's cost beside the layer alone, for every round."""
    x, found = torch.randn(1, tokens, width), {}
    for name, some in kinds(width).items():
        network = nn.Sequential(nn.Linear(width, width))
        path = side_path.SidePath(adapters.AdapterBank([{"0": some}], torch.float32))
        path.install(network)

        def with_update(path: Any = path, network: nn.Module = network) -> None:
            with path.gated(((1.0,),)):
                network(x)

        found[name] = [ratio - 1 for ratio in ratios(lambda layer=network: layer(x), with_update, rounds)]
        path.remove()
    return found


def earlier(folder: Path) -> ModuleType:
    """Import the ``blending`` package of another checkout under a name of its own."""
    name = "earlier_blending"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    for part in ("adapters", "side_path"):
        importlib.import_module(f"{name}.{part}")
    return package


ROWS: Mapping[str, tuple[tuple[tuple[float, ...], ...], ...]] = {
    "stochastic": (((1.0, 0.0, 0.0, 0.0),),),
    "soup": (((0.4, 0.3, 0.2, 0.1),),),
    "blend": tuple((tuple(float(i == k) for i in range(4)),) for k in range(4)),
    "stochastic, per image": (tuple(tuple(float(i == k) for i in range(4)) for k in range(4)),),
}
"""The rows of gates of each call of a step, four adapters, for a batch of four."""


def side_path_of(version: Any, network: nn.Module, width: int, layers: int) -> Any:
    """Install four low-rank adapters on every layer, the same numbers in each version."""
    torch.manual_seed(1)
    low_rank = version.adapters.LowRank
    banks = [
        {str(layer): [low_rank(random(RANK, width), random(width, RANK))] for layer in range(layers)} for _ in range(4)
    ]
    path = version.side_path.SidePath(version.adapters.AdapterBank(banks, torch.float32))
    path.install(network)
    return path


def against(before: Any, now: Any, width: int, tokens: int, rounds: int, layers: int = 8) -> dict[str, list[float]]:
    """Return the time of a step now, divided by that before, for every method and round."""
    networks = [nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    paths = [
        side_path_of(version, network, width, layers) for version, network in zip((before, now), networks, strict=True)
    ]
    x = torch.randn(4, tokens, width)

    def step(number: int, rows: Any) -> list[Tensor]:
        found = []
        for row in rows:
            with paths[number].gated(row):
                found.append(networks[number](x))
        return found

    found = {}
    for name, rows in ROWS.items():
        torch.testing.assert_close(step(0, rows), step(1, rows), rtol=1e-4, atol=1e-5)
        found[name] = ratios(lambda rows=rows: step(0, rows), lambda rows=rows: step(1, rows), rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--before", type=Path, help="blending/ of an earlier checkout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        if options.before is None:
            found = costs_of_kinds(options.width, options.tokens, options.rounds)
            print("cost of the update, divided by the layer alone: median (quartiles)")
        else:
            now = sys.modules["diffusion_blend.blending"]
            found = against(earlier(options.before), now, options.width, options.tokens, options.rounds)
            print("time of a step, now divided by before: median (quartiles)")
    for name, values in found.items():
        print(f"{name:28} {summary(values)}")


if __name__ == "__main__":
    main()
