"""What a blend costs against the base model: whole sampling runs of a true-size network, taking turns.

The networks and adapters have random weights that are made on the device. Every variant first runs alone, which gives its
peak memory, and then once more, which warms it up. After that all take turns, in another random order each round, and each
round's seconds are one line. A run's clock stops when the device has finished.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import host
import torch
from records import Records, finite
from unit_options import Clock, begin, parser

Run = Callable[[], Any]
SPREAD = 50
"""How often the preference is switched."""


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--kind", choices=["sd15", "sdxl", "sd35m"], default="sd15", help="architecture")
    options.add_argument("--size", type=int, default=64, help="latent height and width")
    options.add_argument("--batch", type=int, default=1, help="images at once")
    options.add_argument("--steps", type=int, default=5, help="denoising steps a run")
    options.add_argument("--rounds", type=int, default=15, help="at most; fewer when the time ends")
    options.add_argument("--rank", type=int, default=4, help="of the adapters, on all attention projections")
    options.add_argument("--adapters", type=int, nargs="+", default=[2, 3, 4], help="numbers of adapters to blend")
    options.add_argument("--others", action="store_true", help="also the host's LoRA hooks and swapping of models")
    options.add_argument("--no-merged", action="store_true", help="leave out the host's merged LoRAs: a second network")
    chosen = options.parse_args()
    if chosen.tiny:
        chosen.size, chosen.steps, chosen.rounds = 8, 1, 2
        chosen.adapters = chosen.adapters if chosen.batch == 1 else [2]
    return chosen


@dataclass(frozen=True)
class Variant:
    """A MODEL to run, its calls of the network per step, and its own conditionings where it has some."""

    model: Any
    calls: int = 1
    conds: list[Any] | None = None


@dataclass(frozen=True)
class Bench:
    """What is sampled: a network, adapter files, conditionings, a latent."""

    options: argparse.Namespace
    family: str
    dtype: torch.dtype
    model: Any
    files: list[str]
    tensors: list[dict[str, torch.Tensor]]
    conds: list[Any]
    latent: dict[str, torch.Tensor]
    load: Callable[[], Any]

    def runner(self, variant: Variant) -> Run:
        """A whole sampling run of a variant, as the host's KSampler does it."""
        from nodes import common_ksampler

        scheduler = "simple" if self.family == "sd3" else "normal"
        conds, steps, latent = variant.conds or self.conds, self.options.steps, self.latent
        return lambda: common_ksampler(variant.model, 1, steps, 7.0, "euler", scheduler, *conds, latent)[0]["samples"]


def make_bench(options: argparse.Namespace, folder: Path, device: torch.device) -> Bench:
    """Make the network and write the adapters."""
    import comfy_models
    from comfy_adapters import write
    from folder_paths import folder_names_and_paths

    folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
    family, _, _ = host.network(options.kind, tiny=options.tiny)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    count = max(4, *options.adapters)
    tensors = [host.adapter(options.kind, seed, options.rank, device, tiny=options.tiny) for seed in range(count)]
    files = [Path(write(folder, f"adapter-{i}", part)).name for i, part in enumerate(tensors)]
    tokens = 154 if family == "sd3" else 77
    conds = [comfy_models.conditioning(family, seed, 7 if options.tiny else tokens) for seed in (1, 2)]

    def load() -> Any:
        return host.load(host.weights(options.kind, device, dtype, tiny=options.tiny), dtype)

    latent = comfy_models.latent(family, options.batch, options.size)
    return Bench(options, family, dtype, load(), files, tensors, conds, latent, load)


def variants(bench: Bench) -> dict[str, Variant]:
    """Name -> what to run, the base first."""
    import comfy.sd
    from comfy_world import blend_model, load_loras, preference
    from sampling import hooked, swapping

    options, model = bench.options, bench.model

    def blended(count: int, method: str = "blend", evaluation: str = "sequential") -> Any:
        loras, weights = load_loras(bench.files[:count]), preference(*[1] * count)
        return blend_model(model, loras, weights, method, evaluation=evaluation)

    result = {"base": Variant(model)}
    if not options.no_merged:
        # A network of its own, because patching weights in and out is not the question here.
        merged = bench.load()
        for part in bench.tensors[:4]:
            merged, _ = comfy.sd.load_lora_for_models(merged, None, dict(part), 1 / 4, 0)
        result["host's merged LoRAs, 4"] = Variant(merged)
    result["stochastic of 4"] = Variant(blended(4, "stochastic"))
    result["soup of 4"] = Variant(blended(4, "soup"))
    swapped = bench.load() if options.others else None
    for count in options.adapters:
        result[f"blend of {count}, sequential"] = Variant(blended(count), count)
        result[f"blend of {count}, batched"] = Variant(blended(count, evaluation="batched"), count)
        if options.others:
            parts = bench.tensors[:count]
            result[f"host's LoRA hooks, {count}"] = Variant(model, count, hooked(bench.conds, parts))
            result[f"swapping, {count}"] = Variant(swapping(swapped, parts), count)
    return result


def run_alone(runs: dict[str, Run], made: dict[str, Variant], device: torch.device, records: Records) -> None:
    """Run every variant with nothing else on the device, and write its peak memory and how far it is from its blend."""
    import comfy.model_management

    images: dict[str, torch.Tensor] = {}
    for name, run in runs.items():
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        images[name] = run().float().cpu()
        host.synchronize(device)
        peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else None
        values: dict[str, Any] = {"name": name, "calls": made[name].calls, "peak_bytes": peak}
        values["finite"] = bool(images[name].isfinite().all())
        twin = images.get(f"blend of {made[name].calls}, sequential")
        if twin is not None and name != f"blend of {made[name].calls}, sequential" and made[name].calls > 1:
            values["difference_to_blend"] = finite(float((images[name] - twin).norm() / twin.norm()))
            values["effect"] = finite(float((twin - images["base"]).norm() / images["base"].norm()))
        records.write("variant", **values)


def rounds(runs: dict[str, Run], count: int, device: torch.device, clock: Clock) -> Iterator[dict[str, float]]:
    """Seconds of every variant, one round after the other, until the number or the time is reached."""
    order, chance = list(runs), random.Random(0)
    longest = 0.0
    for number in range(count + 1):
        # The host may move all weights at every swap: these runs join every third round, so that the others get more.
        turn = [name for name in order if number < 2 or number % 3 == 1 or not name.startswith("swapping")]
        if number > 1 and clock.left() < 1.2 * longest + 1:
            return
        began, seconds = time.perf_counter(), {}
        chance.shuffle(turn)
        for name in turn:
            host.synchronize(device)
            start = time.perf_counter()
            runs[name]()
            host.synchronize(device)
            seconds[name] = time.perf_counter() - start
        longest = max(longest, time.perf_counter() - began)
        if number:  # the first one loads what the runs alone have unloaded
            yield seconds


def write_costs(bench: Bench, made: dict[str, Variant], records: Records) -> None:
    """Count the FLOPs and bytes of a call, which give the floor, and time switches of the preference."""
    from sampling import switch
    from side_path_cost import count_costs

    run = switch(bench.model, bench.files[:4])
    run()
    times = []
    for _ in range(5 if bench.options.tiny else SPREAD):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    records.write("switch", milliseconds=times, adapters=4)
    records.write("costs", **count_costs(made["base"].model, made["soup of 4"].model, bench.conds, bench.latent))


def main() -> int:
    options = arguments()
    records, clock = begin(options)
    device = host.start(cpu=options.cpu)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = make_bench(options, Path(folder), device)
        setting = {name: getattr(options, name) for name in ("kind", "size", "batch", "steps", "rank")}
        size = "small" if options.tiny else "true size"
        records.write("setting", **setting, dtype=str(bench.dtype).removeprefix("torch."), network=size, cfg=7.0)
        made = variants(bench)
        runs = {name: bench.runner(variant) for name, variant in made.items()}
        run_alone(runs, made, device, records)
        write_costs(bench, made, records)
        done = 0
        for done, seconds in enumerate(rounds(runs, options.rounds, device, clock), 1):
            records.write("round", number=done, seconds=seconds)
        print(f"{done} rounds of {len(runs)} variants, {clock.left():.0f} s left")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
