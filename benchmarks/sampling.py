"""The cost of blending in the host: whole sampling runs as ratios to the base run, all in one process.

    python -P benchmarks/sampling.py [--json FILE] [--rounds N] [--kind sd15|sdxl|sd3] [--size N] [--steps N] [--others]
        [--ranks 4 16 64 128] [--batches 1 4] [--adapters 2 3 4 8] [--clock wall|cpu] [--threads N] [--true-size]
        [--dtype float32|float16|bfloat16] [--gpu] [--only NAME ...]

``--others`` adds two other ways to the same image. One is the host's own LoRA hooks wired by hand. The other is naive swapping,
which patches one adapter after the other into the weights at every step.

The variants take turns, after one warm-up each and in a new random order in each round (seed 0). So a drift of the machine's
speed slows all of them, and no variant always follows the same other one. Each figure is the median over rounds of the ratio to
the base run of the same round. ``per call`` divides by the number of model calls per step; 1.00 means that the side path costs
nothing. The clock ``cpu`` counts the seconds in which this process computed, without those in which it waited for a busy
machine. With one thread this is the time of a quiet machine but for shared caches. ``counted`` is the ratio of the FLOPs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools"), str(ROOT / "benchmarks")]

import comfy_hosts  # noqa: E402  after its folder is on the path
from diffusion_blend.blending.plans import EarlyBlend  # noqa: E402
from diffusion_blend.blending.step_info import StepInfo  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of all variants (more: steadier medians)")
    parser.add_argument(
        "--kind", default="sd15", choices=["sd15", "sdxl", "sd3"], help="shallow checkpoint of this architecture"
    )
    parser.add_argument("--size", type=int, default=32, help="latent height and width")
    parser.add_argument("--steps", type=int, default=3, help="denoising steps a run")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[4], help="ranks of the adapters, on all attention projections"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="images at once")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="which seconds count (see above)")
    parser.add_argument("--threads", type=int, help="torch's threads; torch's own choice without")
    parser.add_argument("--adapters", type=int, nargs="+", default=[2, 3, 4], help="numbers of adapters to blend")
    parser.add_argument("--no-batched", action="store_true", help="leave out the blends in one call")
    parser.add_argument("--others", action="store_true", help="also the host's LoRA hooks and naive model swapping")
    parser.add_argument(
        "--true-size", action="store_true", help="the architecture's true size instead of a shallow one"
    )
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the weights")
    parser.add_argument("--only", nargs="+", help="besides base and soup, run only the variants whose names begin so")
    parser.add_argument("--gpu", action="store_true", help="use the GPU (the host's --cpu otherwise)")
    return parser.parse_args()


def start_host(gpu: bool) -> None:
    hosts = comfy_hosts.find_hosts()
    if not hosts:
        raise SystemExit(comfy_hosts.HOW_TO_GET_ONE)
    sys.path.insert(0, str(hosts[0]))
    import comfy.cli_args

    comfy.cli_args.args.cpu = not gpu
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    print(f"ComfyUI {'.'.join(map(str, comfy_hosts.version(hosts[0])))}", end=", ")


@dataclass(frozen=True)
class Variant:
    """A MODEL to run, its calls and active adapters per step, and its own conditionings if it has some."""

    model: Any
    calls: float = 1
    active: float = 0
    conds: list[Any] | None = None


def variants(options: argparse.Namespace, folder: Path, conds: list[Any], rank: int) -> dict[str, Variant]:
    """Return name -> variant. ``active`` is the number of adapters whose factors a step multiplies."""
    import comfy.sd
    import torch
    from comfy_adapters import kohya, write
    from comfy_world import blend_model, load_loras, preference
    from folder_paths import folder_names_and_paths
    from true_size import load

    folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
    tensors = [kohya(options.kind, seed, rank) for seed in range(max(4, *options.adapters))]
    files = [Path(write(folder, f"adapter-{i}", part)).name for i, part in enumerate(tensors)]
    dtype = getattr(torch, options.dtype)
    model = load(options.kind, dtype)
    # Each has a network of its own, because the patching of one set of weights is not measured here.
    merged = load(options.kind, dtype)
    for part in tensors[:4]:
        merged, _ = comfy.sd.load_lora_for_models(merged, None, part, 1 / 4, 0)
    four, weights = load_loras(files[:4]), preference(1, 1, 1, 1)

    def blended(loras: Any, weights: Any, method: str = "blend", evaluation: str = "sequential") -> Any:
        return blend_model(model, loras, weights, method, evaluation=evaluation)

    plans = [EarlyBlend((1 / 4,) * 4)(StepInfo(index, options.steps)) for index in range(options.steps)]
    result = {
        "base": Variant(model),
        "host's merged LoRAs, 4": Variant(merged),
        "stochastic of 4": Variant(blended(four, weights, "stochastic"), 1, 1),
        "soup of 4": Variant(blended(four, weights, "soup"), 1, 4),
        "early of 4": Variant(
            blended(four, weights, "early"), sum(len(plan.gates) for plan in plans) / options.steps, 4
        ),
    }
    for count in options.adapters:
        loras, weights = load_loras(files[:count]), preference(*[1] * count)
        result[f"blend of {count}, sequential"] = Variant(blended(loras, weights), count, count)
        if not options.no_batched:
            batched = blended(loras, weights, evaluation="batched")
            result[f"blend of {count}, batched"] = Variant(batched, count, count)
        if options.others:
            result[f"hooks wired by hand, {count}"] = Variant(model, count, conds=hooked(conds, tensors[:count]))
            result[f"naive swapping, {count}"] = Variant(swapping(load(options.kind, dtype), tensors[:count]), count)
    if options.only:
        beginnings = ("base", "soup of 4", *options.only)
        return {name: variant for name, variant in result.items() if name.startswith(beginnings)}
    return result


def swapping(base: Any, tensors: list[Any]) -> Any:
    """Return a MODEL that patches each adapter in turn into one set of weights at every step, and averages the predictions."""
    import comfy.model_management
    import comfy.sd
    from comfy_adapters import predict

    patched = [comfy.sd.load_lora_for_models(base, None, dict(part), 1.0, 0)[0] for part in tensors]

    def swap(_: Any, call: dict[str, Any]) -> Any:
        total = None
        for model in patched:
            comfy.model_management.load_models_gpu([model])
            prediction = predict(model, call) / len(patched)
            total = prediction if total is None else total + prediction
        return total

    wrapped = base.clone()
    wrapped.set_model_unet_function_wrapper(swap)
    return wrapped


def hooked(conds: list[Any], tensors: list[Any]) -> list[list[Any]]:
    """Return the blend as a graph of the host's own nodes: a copy of each conditioning for every adapter, with its LoRA hook."""
    import comfy.hooks

    result: list[list[Any]] = [[], []]
    for part in tensors:
        hooks = comfy.hooks.create_hook_lora(lora=dict(part), strength_model=1.0, strength_clip=0.0)
        for side, cond in zip(result, conds, strict=True):
            side += comfy.hooks.set_hooks_for_conditioning(cond, hooks)
    return result


def switch(model: Any, files: list[str]) -> Callable[[], Any]:
    """Return a function that sets a new preference on a loaded model, up to the start of the first step."""
    from comfy.patcher_extension import WrappersMP
    from comfy_world import blend_model, load_loras, preference
    from diffusion_blend.nodes.engine.run import KEY

    loras, position = load_loras(files), iter(range(10**9))

    def run() -> Any:
        blended = blend_model(model, loras, preference(*[1 + (next(position) + i) % 7 for i in range(len(files))]))
        (blend,) = blended.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
        with blend.run() as begun:
            begun._gated(blended.model)
        return blended

    return run


def measure(runs: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Measure the seconds of every variant in every round, in turns. Each has run before."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order, chance = list(runs), random.Random(0)
    for number in range(rounds):
        chance.shuffle(order)
        for name in order:
            start = clock()
            runs[name]()
            seconds[name].append(clock() - start)
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def cell(options: argparse.Namespace, rank: int, batch: int) -> dict[str, Any]:
    """Measure all variants at one rank and batch; returns the table as data."""
    import comfy_models
    import torch
    from nodes import common_ksampler
    from side_path_cost import count_costs

    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        conds = [comfy_models.conditioning(options.kind, seed) for seed in (1, 2)]
        models = variants(options, Path(folder), conds, rank)
        latent = comfy_models.latent(options.kind, batch, options.size)

        def run(variant: Variant) -> Callable[[], Any]:
            own = variant.conds or conds
            return lambda: common_ksampler(
                variant.model, 1, options.steps, 7.0, "euler", "normal", *own, latent, denoise=1.0
            )[0]["samples"]

        images = {name: run(variant)() for name, variant in models.items()}
        for count in options.adapters if options.others else []:
            wanted = images.get(f"blend of {count}, sequential")
            if wanted is None:
                continue
            for other in (f"hooks wired by hand, {count}", f"naive swapping, {count}"):
                if other not in images:
                    continue
                if float((images[other] - wanted).norm() / wanted.norm()) > 1e-3:
                    raise SystemExit(f"{other} is not the blend: the comparison would be of different images.")
        seconds = measure({name: run(variant) for name, variant in models.items()}, options.rounds, clock)
        model = models["base"].model
        costs = count_costs(model, models["soup of 4"].model, conds, latent)
        files = sorted(path.name for path in Path(folder).glob("*.safetensors"))[:4]
        change = switch(model, files)
        change()
        switched = statistics.median(measure({"switch": change}, 100, clock)["switch"])
    table = {}
    for name, times in seconds.items():
        ratios = [t / b for t, b in zip(times, seconds["base"], strict=True)]
        variant = models[name]
        table[name] = {
            "seconds_per_step": statistics.median(times) / options.steps,
            "ratio": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else [],
            "calls": variant.calls,
            "counted": variant.calls + variant.active * costs["flops_per_adapter"] / costs["base_flops"],
        }
    return {"rank": rank, "batch": batch, "figures": table, "costs": costs, "switch_ms": 1000 * switched}


def show(options: argparse.Namespace, cell: dict[str, Any], title: str) -> None:
    """Print a cell."""
    print(f"\n{title}, latent {options.size} x {options.size}, rank {cell['rank']}, batch {cell['batch']}")
    print(f"{'':28}{'s/step':>9}{'ratio':>8}{'quartiles':>15}{'per call':>10}{'calls':>7}{'counted':>9}")
    for name, row in cell["figures"].items():
        quartiles = "-".join(f"{value:.3f}" for value in row["quartiles"])
        print(
            f"{name:28}{row['seconds_per_step']:9.4f}{row['ratio']:8.3f}{quartiles:>15}"
            f"{row['ratio'] / row['calls']:10.3f}{row['calls']:7.2f}{row['counted']:9.3f}"
        )
    costs = cell["costs"]
    print(f"a new preference over 4 adapters, up to its first step: {cell['switch_ms']:.2f} ms")
    print(f"memory of 4 adapters: {costs['adapter_bytes'] / costs['base_bytes']:.2%} of this network's")
    print(
        f"one call: base {costs['base_flops'] / 1e9:.3f} GFLOP; one adapter {costs['flops_per_adapter'] / 1e6:.2f} MFLOP and "
        f"{costs['bytes_per_adapter'] / 1e6:.2f} MB"
    )


def main() -> None:
    options = arguments()
    start_host(options.gpu)
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.true_size:
        from true_size import use_true_size

        use_true_size(options.kind)
    size = "true-size" if options.true_size else "shallow"
    title = (
        f"{size} {options.kind}, {options.dtype}, {options.steps} steps, cfg 7, {torch.get_num_threads()} threads, "
        f"{options.clock} clock, median of {options.rounds} rounds"
    )
    cells = []
    for batch in options.batches:
        for rank in options.ranks:
            cells.append(cell(options, rank, batch))
            show(options, cells[-1], title)
            if options.json:
                settings = vars(options) | {"json": options.json.name}
                options.json.write_text(json.dumps({"options": settings, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
