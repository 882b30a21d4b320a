"""The start and end of a run on a network of SDXL's true depth: what a new preference costs before its first step.

The network has no weights (it is on torch's meta device), because a run starts without reading any. ``python -P
benchmarks/start_of_run.py`` takes a few seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools"), str(ROOT / "benchmarks")]

import comfy_hosts  # noqa: E402

DEPTHS = {
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=4)
    return parser.parse_args()


def milliseconds(function: Callable[[], Any], rounds: int) -> float:
    """The median of a function's CPU time."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    options = parse()
    sys.path.insert(0, str(comfy_hosts.find_hosts()[0]))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.ops
    import comfy_models
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from diffusion_blend.blending.adapters import AdapterBank
    from diffusion_blend.blending.updates import LowRank
    from diffusion_blend.nodes.engine.gated import GatedNetwork
    from diffusion_blend.nodes.engine.module_tree import ModuleTree, ModuleTrees

    torch.set_num_threads(1)
    network = torch.nn.Module()
    with torch.device("meta"):
        network.diffusion_model = UNetModel(**comfy_models.SDXL | DEPTHS, operations=comfy.ops.disable_weight_init)
    layers = {
        name: module
        for name, module in network.named_modules()
        if hasattr(module, "in_features") and ".attn" in name  # as kohya's LoRAs for attention
    }
    adapter = {
        name: [LowRank(torch.zeros(options.rank, layer.in_features), torch.zeros(layer.out_features, options.rank))]
        for name, layer in layers.items()
    }
    bank, trees = AdapterBank([adapter] * options.adapters, torch.float16), ModuleTrees()

    def run() -> None:
        gated = GatedNetwork(bank, network, trees.of(network))
        gated.install()
        gated.remove()

    run()
    print(f"{sum(1 for _ in network.modules())} modules, {options.adapters} adapters on {len(layers)} layers")
    print(
        f"walk over the modules, once for a set of adapters: {milliseconds(lambda: ModuleTree(network), options.rounds):.2f} ms"
    )
    print(f"start and end of every run: {milliseconds(run, options.rounds):.2f} ms")


if __name__ == "__main__":
    main()
