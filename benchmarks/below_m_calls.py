"""The distance of methods with fewer model calls to the full blend, in final latents of whole runs of the host's shallow SD 1.5.

    python -P benchmarks/below_m_calls.py [--adapters N] [--steps N] [--sampler euler|euler_ancestral] [--size N]
        [--width N] [--strength S] [--seeds N] [--methods NAME ...] [--power P] [--ahead A] [--gaps] [--json FILE]

The error of a method is ``||x - x_blend|| / ||x_blend||`` at the end of a run with the same noise and guidance 7. The column
``of soup's`` divides it by the soup's error. The adapters are random, of rank 4 on all attention projections, and
``strength`` times a unit-gain weight. The preference weights are equal.

- bare N: the blend at the first N steps, then the soup.
- early N: the method of the nodes with N early steps (`EarlyBlend`). ``--power`` and ``--ahead`` change its extrapolation.
- cached N: the blend at every N-th step. The other steps add the last difference between blend and soup to the soup.
- rotating N: the soup plus every adapter's cached difference to it. Each step renews N of the differences.
- antithetic: the mean of two calls whose gates are w + v and w - v. Here v steps through directions of covariance
  ``diag(w) - w w^T``.
- one uncond: the blend in the conditional branch, the soup in the other branch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools"), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from diffusion_blend.blending.adapters import AdapterBank, LowRank  # noqa: E402
from diffusion_blend.blending.combine import combine  # noqa: E402
from diffusion_blend.blending.plans import RESIDUAL_EXTRAPOLATION, EarlyBlend, Extrapolation  # noqa: E402
from diffusion_blend.blending.residual_cache import ResidualCache  # noqa: E402
from diffusion_blend.blending.side_path import SidePath  # noqa: E402
from diffusion_blend.blending.step_info import StepInfo  # noqa: E402
from sampling import start_host  # noqa: E402
from torch import Tensor  # noqa: E402

METHODS = ("soup", "bare 3", "bare 4", "bare 5", "bare 6", "early 3", "early 4", "early 5", "early 6", "early 8")
METHODS += ("cached 2", "cached 4", "cached 8", "rotating 1", "antithetic", "one uncond")
CFG = 7.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sampler", choices=["euler", "euler_ancestral"], default="euler")
    parser.add_argument("--size", type=int, default=8, help="latent height and width")
    parser.add_argument("--width", type=int, default=320, help="the network's channels; SD 1.5's are 320")
    parser.add_argument("--strength", type=float, default=0.4)
    parser.add_argument("--seeds", type=int, default=1, help="runs to average over")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument(
        "--power", type=float, default=RESIDUAL_EXTRAPOLATION.power, help="of the residual's decay in early"
    )
    parser.add_argument(
        "--ahead", type=float, default=RESIDUAL_EXTRAPOLATION.ahead, help="share of the last change that early repeats"
    )
    parser.add_argument(
        "--gaps", action="store_true", help="print size and change of direction of the residual at each step, and stop"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@dataclass
class RunState:
    """A step of a run: the network at its latents, the method's memory, and the number of calls so far."""

    network: Callable[[tuple[float, ...], slice], Tensor]
    weights: tuple[float, ...]
    index: int
    steps: int
    sigma: float
    memory: dict[str, Any]
    extrapolation: Extrapolation
    calls: float = field(default=0.0)

    def soup(self, branches: slice = slice(None)) -> Tensor:
        return self.at(self.weights, branches)

    def adapter(self, number: int, branches: slice = slice(None)) -> Tensor:
        return self.at(tuple(float(number == other) for other in range(len(self.weights))), branches)

    def blend(self, branches: slice = slice(None)) -> Tensor:
        parts = (weight * self.adapter(i, branches) for i, weight in enumerate(self.weights))
        return torch.stack(list(parts)).sum(0)

    def at(self, gates: tuple[float, ...], branches: slice = slice(None)) -> Tensor:
        denoised = self.network(gates, branches)
        self.calls += len(denoised) / 2
        return denoised


def denoised_by(method: str, state: RunState) -> Tensor:
    """Compute a method's x0 prediction of both branches, float[2, C, H, W], the conditional one first."""
    name, _, number = method.partition(" ")
    if name == "blend" or (name == "bare" and state.index < int(number)):
        return state.blend()
    if name == "early":
        return early(state, int(number))
    if name == "cached":
        soup = state.soup()
        if state.index % int(number) == 0:
            blend = state.blend()
            state.memory["correction"] = blend - soup
            return blend
        return soup + state.memory["correction"]
    if name == "rotating":
        return rotating(state, int(number))
    if name == "antithetic":
        away = directions(state.weights)[state.index % (len(state.weights) - 1)].tolist()
        pair = [tuple(w + sign * v for w, v in zip(state.weights, away, strict=True)) for sign in (1, -1)]
        return (state.at(pair[0]) + state.at(pair[1])) / 2
    if name == "one":
        return torch.cat([state.blend(slice(0, 1)), state.soup(slice(1, 2))])
    return state.soup()


def early(state: RunState, count: int) -> Tensor:
    """Run the plan of `EarlyBlend` for this step."""
    planner = EarlyBlend(state.weights, count / state.steps)
    plan = planner(StepInfo(state.index, state.steps))
    predictions = [state.at(row) for (row,) in plan.gates]
    cache, branches = state.memory.setdefault("residuals", ResidualCache()), ("conditional", "other")
    sigma = torch.full((len(branches),), state.sigma)
    if plan.residual_mix is not None:
        cache.store(branches, combine(predictions, plan.residual_mix), sigma, state.index)
    denoised = combine(predictions, plan.mix)
    return denoised if plan.extrapolation is None else cache.extrapolate(branches, denoised, sigma, state.extrapolation)


def print_gaps(options: argparse.Namespace, world: Any) -> None:
    """Print the residual of the guided noise prediction along a blended run: its size, and its cosine to the next one."""
    gaps: list[tuple[float, Tensor]] = []

    def watched(state: RunState) -> Tensor:
        blend = state.blend()
        conditional, other = (blend - state.soup()).div(state.sigma)
        gaps.append((state.sigma, (other + CFG * (conditional - other)).flatten()))
        return blend

    run(watched, options, world, 0)
    for (sigma, gap), (_, following) in pairwise(gaps):
        cosine = float(torch.cosine_similarity(gap, following, dim=0))
        print(f"sigma {sigma:7.3f}  gap {float(gap.norm()):8.3f}  cosine to the next {cosine:.3f}")


def rotating(state: RunState, renewed: int) -> Tensor:
    """Add the adapters' cached differences to the soup. A step renews only some of the differences."""
    soup, count = state.soup(), len(state.weights)
    differences = state.memory.setdefault("differences", [None] * count)
    first = state.memory.setdefault("next", 0)
    which = range(count) if state.index == 0 else [(first + i) % count for i in range(renewed)]
    for number in which:
        differences[number] = state.adapter(number) - soup
    state.memory["next"] = (first + renewed) % count
    return soup + sum(weight * difference for weight, difference in zip(state.weights, differences, strict=True))


def directions(weights: tuple[float, ...]) -> Tensor:
    """Return m - 1 directions of sum 0 with ``mean_j v_j v_j^T = diag(w) - w w^T``, float[m - 1, m]."""
    root = torch.tensor(weights).sqrt()
    basis = torch.linalg.qr(torch.cat([root[:, None], torch.eye(len(weights))[:, 1:]], 1)).Q[:, 1:]
    return math.sqrt(len(weights) - 1) * (root[:, None] * basis).t()


def run(
    method: str | Callable[[RunState], Tensor], options: argparse.Namespace, world: Any, seed: int
) -> tuple[Tensor, float]:
    """Run a sampling; returns its latent and its model calls per step."""
    predict, sigmas, channels = world
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, channels, options.size, options.size, generator=generator) * sigmas[0]
    memory: dict[str, Any] = {}
    calls = 0.0
    weights = (1 / options.adapters,) * options.adapters
    extrapolation = Extrapolation(options.power, options.ahead)
    for index, (sigma, following) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        network = partial(predict, x, sigma)
        state = RunState(network, weights, index, options.steps, sigma, memory, extrapolation)
        denoised = denoised_by(method, state) if isinstance(method, str) else method(state)
        conditional, other = denoised.split(1)
        calls += state.calls
        guided = other + CFG * (conditional - other)
        up = 0.0
        if options.sampler == "euler_ancestral":
            up = min(following, math.sqrt(following**2 * (sigma**2 - following**2) / sigma**2))
        down = math.sqrt(following**2 - up**2)
        x = guided + down / sigma * (x - guided) + up * torch.randn(x.shape, generator=generator)
    return x, calls / options.steps


def make_world(options: argparse.Namespace) -> Any:
    """Return the gated x0 prediction of a shallow SD 1.5, the noise levels, and the latent's channels."""
    import comfy.model_sampling
    import comfy.ops
    import comfy.samplers
    import comfy_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy_adapters import ATTENTION, low_rank

    config = comfy_models.SD15 | {"model_channels": options.width, "num_heads": max(1, options.width // 40)}
    unet = UNetModel(**config, operations=comfy.ops.disable_weight_init)
    tensors = unet.state_dict()
    comfy_models.fill(tensors, 0)

    class Sampling(comfy.model_sampling.EPS, comfy.model_sampling.ModelSamplingDiscrete):
        """The sampling of SD 1.5."""

    sampling: Any = Sampling()
    endings = tuple(f"{ending}.weight" for ending in ATTENTION)
    shapes = {name.removesuffix(".weight"): tensor.shape for name, tensor in tensors.items() if name.endswith(endings)}
    adapters = []
    for seed in range(options.adapters):
        generator = torch.Generator().manual_seed(seed + 1)
        pairs = {name: low_rank(shape, 4, generator, options.strength) for name, shape in shapes.items()}
        adapters.append({name: [LowRank(down, up)] for name, (up, down) in pairs.items()})
    path = SidePath(AdapterBank(adapters, torch.float32))
    path.install(unet)
    context = torch.cat([comfy_models.conditioning("sd15", seed)[0][0] for seed in (1, 2)])

    def predict(x: Tensor, sigma: float, gates: tuple[float, ...], branches: slice) -> Tensor:
        text = context[branches]
        inputs, level = x.repeat(len(text), 1, 1, 1), torch.full((len(text),), sigma)
        with path.gated((gates,)):
            eps = unet(sampling.calculate_input(level, inputs), sampling.timestep(level).float(), context=text)
        return sampling.calculate_denoised(level, eps, inputs)

    return predict, comfy.samplers.calculate_sigmas(sampling, "normal", options.steps), config["in_channels"]


def main() -> None:
    options = arguments()
    start_host(gpu=False)
    with torch.inference_mode():
        world = make_world(options)
        if options.gaps:
            print_gaps(options, world)
            return
        seeds = range(options.seeds)
        blends = [run("blend", options, world, seed)[0] for seed in seeds]
        print(f"{options.adapters} adapters, {options.width} channels, {options.sampler}, {options.steps} steps")
        rows: dict[str, dict[str, float]] = {}
        for method in dict.fromkeys(("soup", *options.methods)):
            results = [run(method, options, world, seed) for seed in seeds]
            errors = [float((x - b).norm() / b.norm()) for (x, _), b in zip(results, blends, strict=True)]
            error = sum(errors) / len(errors)
            rows[method] = {
                "calls": results[0][1],
                "error": error,
                "of_soup": error / rows.get("soup", {"error": error})["error"],
            }
            print(
                f"{method:14} calls {results[0][1]:5.2f}  error {error:.4f}  of soup's {rows[method]['of_soup']:.3f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(
            json.dumps({"options": vars(options) | {"json": options.json.name}, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
