"""What blending costs in the host: whole sampling runs as ratios to the base run, all in one process.

    python -P benchmarks/sampling.py [--json FILE] [--rounds N] [--kind sd15|sdxl|sd3] [--size N] [--steps N] [--others]

``--others`` adds the two other ways to the same image: the host's own LoRA hooks wired by hand, and naive swapping, which
patches one adapter after the other into the weights at every step.

The variants take turns (base first in every round, after one warm-up each), so that a machine whose speed drifts slows
all of them; each figure is the median over rounds of that round's ratio to its own base run. ``per call`` divides by the
number of model calls per step, so 1.00 means that the side path costs nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import comfy_hosts  # noqa: E402  after its folder is on the path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of all variants (more: steadier medians)")
    parser.add_argument(
        "--kind", default="sd15", choices=["sd15", "sdxl", "sd3"], help="shallow checkpoint of this architecture"
    )
    parser.add_argument("--size", type=int, default=32, help="latent height and width")
    parser.add_argument("--steps", type=int, default=3, help="denoising steps a run")
    parser.add_argument("--rank", type=int, default=4, help="rank of the adapters, on all attention projections")
    parser.add_argument("--adapters", type=int, nargs="+", default=[2, 3, 4], help="numbers of adapters to blend")
    parser.add_argument("--others", action="store_true", help="also the host's LoRA hooks and naive model swapping")
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


Variant = tuple[Any, int, "list[Any] | None"]
"""MODEL, model calls per step, and conditionings of its own."""


def variants(options: argparse.Namespace, folder: Path, conds: list[Any]) -> dict[str, Variant]:
    """Name -> what to run."""
    import comfy.sd
    import comfy_models
    from comfy_adapters import kohya, write
    from comfy_world import blend_model, load_loras, preference
    from folder_paths import folder_names_and_paths

    folder_names_and_paths["loras"] = ([str(folder)], {".safetensors"})
    most = max(options.adapters)
    tensors = [kohya(options.kind, seed, options.rank) for seed in range(most)]
    files = [Path(write(folder, f"adapter-{i}", part)).name for i, part in enumerate(tensors)]
    model = comfy_models.load(options.kind)
    merged = comfy_models.load.__wrapped__(
        options.kind
    )  # a network of its own: patching it in and out is not the question
    for part in tensors[:3]:
        merged, _ = comfy.sd.load_lora_for_models(merged, None, part, 1 / 3, 0)
    result: dict[str, Variant] = {"base": (model, 1, None), "host's merged LoRAs (3)": (merged, 1, None)}
    three = load_loras(files[:3])
    weights = preference(1, 1, 1)
    result["stochastic of 3"] = (blend_model(model, three, weights, "stochastic", evaluation="auto"), 1, None)
    result["soup of 3"] = (blend_model(model, three, weights, "soup", evaluation="auto"), 1, None)
    for count in options.adapters:
        loras, weights = load_loras(files[:count]), preference(*[1] * count)
        for evaluation in ("sequential", "batched"):
            blended = blend_model(model, loras, weights, evaluation=evaluation)
            result[f"blend of {count}, {evaluation}"] = (blended, count, None)
        if options.others:
            result[f"hooks wired by hand, {count}"] = (model, count, hooked(conds, tensors[:count]))
            result[f"naive swapping, {count}"] = (swapping(options.kind, tensors[:count]), count, None)
    return result


def swapping(kind: str, tensors: list[Any]) -> Any:
    """A MODEL that patches each adapter into the one set of weights in turn, at every step, and averages what they predict."""
    import comfy.model_management
    import comfy.sd
    import comfy_models
    from comfy_adapters import predict

    base = comfy_models.load.__wrapped__(kind)  # weights of its own
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
    """The blend as a graph of the host's own nodes: a copy of each conditioning for every adapter, with its LoRA hook."""
    import comfy.hooks

    result: list[list[Any]] = [[], []]
    for part in tensors:
        hooks = comfy.hooks.create_hook_lora(lora=dict(part), strength_model=1.0, strength_clip=0.0)
        for side, cond in zip(result, conds, strict=True):
            side += comfy.hooks.set_hooks_for_conditioning(cond, hooks)
    return result


def switch(model: Any, files: list[str]) -> Callable[[], Any]:
    """A new preference on a loaded model, up to where its first step would begin: the nodes' own work."""
    from comfy_world import blend_model, load_loras, preference

    loras, position = load_loras(files), iter(range(10**9))

    def run() -> Any:
        return blend_model(model, loras, preference(*[1 + (next(position) + i) % 7 for i in range(len(files))]))

    return run


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant in every round, taking turns after a warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
        print(f"\rround {number} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def main() -> None:
    options = arguments()
    start_host(options.gpu)
    import comfy_models
    import torch
    from nodes import common_ksampler

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        conds = [comfy_models.conditioning(options.kind, seed) for seed in (1, 2)]
        models = variants(options, Path(folder), conds)
        latent = comfy_models.latent(options.kind, 1, options.size)

        def run(model: Any, own: list[Any] | None) -> Callable[[], Any]:
            return lambda: common_ksampler(model, 1, options.steps, 7.0, "euler", "normal", *(own or conds), latent)

        seconds = measure({name: run(model, own) for name, (model, _, own) in models.items()}, options.rounds)
        calls = {name: number for name, (_, number, _) in models.items()}
        model, files = models["base"][0], sorted(path.name for path in Path(folder).glob("*.safetensors"))
        change = switch(model, files[: max(options.adapters)])
        change()
        switched = statistics.median(measure({"switch": change}, 100)["switch"])
        bank = change().get_additional_models()[0].model
        adapters = sum(tensor.nbytes for tensor in [*bank.parameters(), *bank.buffers()])
        share = adapters / sum(parameter.nbytes for parameter in model.model.diffusion_model.parameters())
    print(
        f"shallow {options.kind}, latent {options.size} x {options.size}, rank {options.rank}, {options.steps} steps, cfg 7, "
        f"{torch.get_num_threads()} threads, {options.rounds} rounds"
    )
    print(f"{'':28}{'s/step':>9}{'ratio':>8}{'per call':>10}{'calls':>7}")
    table = {}
    for name, times in seconds.items():
        ratio = statistics.median(t / b for t, b in zip(times, seconds["base"], strict=True))
        step = statistics.median(times) / options.steps
        table[name] = {
            "seconds_per_step": step,
            "ratio": ratio,
            "ratio_per_call": ratio / calls[name],
            "calls": calls[name],
        }
        print(f"{name:28}{step:9.4f}{ratio:8.3f}{ratio / calls[name]:10.3f}{calls[name]:7d}")
    print(f"a new preference over {max(options.adapters)} adapters, up to its first step: {1000 * switched:.2f} ms")
    print(f"memory of {max(options.adapters)} adapters of rank {options.rank}: {share:.2%} of this network's")
    if options.json:
        options.json.write_text(
            json.dumps({"options": vars(options) | {"json": str(options.json)}, "figures": table}, indent=1)
        )


if __name__ == "__main__":
    main()
