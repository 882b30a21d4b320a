"""The learned study: every method on trained networks, through the shipped side path, against the known truth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...blending.adapters import AdapterBank, LowRank
from ...blending.combine import evaluate
from ...blending.msdda import fuse_gaussians
from ...blending.plans import Blend, Gates, Soup
from ...blending.side_path import SidePath
from ...blending.step_info import StepInfo
from ..intervals import interval
from .ancestral import SIGMA_MAX, Denoise, sample, schedule, split
from .distance import sliced_wasserstein
from .draw_table import draw_table
from .mixture import GaussianMixture, QuadraticReward, ring, ring_rewards, weighted_reward
from .networks import Denoiser, average_factors, train_adapters, train_base
from .units import Units

STEPS = 50
METHODS = (
    "base",
    "blend",
    "stochastic, stratified",
    "stochastic, independent",
    "soup",
    "factor-averaged soup",
    "MSDDA",
    "trained for w",
    "floor",
)
# (rewards, alpha): pairs over alpha, then two to six rewards at alpha 1.
PAIRS = (("right", "up"), ("right", "centre"))
ALPHAS = (2.0, 1.0, 0.5, 0.25)
SETS = tuple(tuple(reward.name for reward in ring_rewards()[:count]) for count in (3, 4, 5, 6))


@dataclass(frozen=True)
class Effort:
    """How much is computed: training steps, sampled points, seeds, and whether sets of more than two rewards are left out."""

    base_steps: int = 4000
    adapter_steps: int = 1000
    points: int = 4000
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    only_pairs: bool = False


class Adapted:
    """A network with adapters on the shipped side path. The last two are the adapter trained for w and the averaged factors."""

    def __init__(self, base: Denoiser, adapters: Sequence[dict[str, list[LowRank]]]) -> None:
        self.base = base
        self.count = len(adapters)
        self.path = SidePath(AdapterBank(adapters, torch.float32))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hook the network for the block."""
        self.path.install(self.base)
        try:
            with torch.no_grad():
                yield
        finally:
            self.path.remove()

    def predict(self, row: Gates, x: Tensor, sigma: float) -> Tensor:
        """x0 through one row of gates for all points."""
        with self.path.gated((row,)):
            return self.base(x, torch.full((len(x),), sigma))

    def unit(self, index: int) -> Gates:
        """The row that opens one adapter."""
        return tuple(float(i == index) for i in range(self.count))


def run_setting(
    base: Denoiser, singles: list[Any], trained: Any, weights: list[float], seed: int, points: int
) -> dict[str, Any]:
    """Sample with every method, from the same start and the same noise.

    Returns:
        Points float[N, 2] by method; under "linearity gap" and "MSDDA difference" numbers.
    """
    rewards = len(singles)
    model = Adapted(base, [*singles, trained, average_factors(singles, weights)])
    coefficients = (*weights, 0.0, 0.0)
    start = torch.randn((points, 2), generator=torch.Generator().manual_seed(seed))

    def run(denoise: Denoise) -> Tensor:
        return sample(denoise, start, STEPS, torch.Generator().manual_seed(seed + 1))

    def planned(planner: Blend | Soup) -> Denoise:
        return lambda x, sigma, index: evaluate(
            planner(StepInfo(index, STEPS)), lambda row: model.predict(row[0], x, sigma)
        )

    def one(index: int) -> Denoise:
        return lambda x, sigma, _: model.predict(model.unit(index), x, sigma)

    def drawn(kind: str) -> Denoise:
        table = draw_table(kind, weights, STEPS, points, torch.Generator().manual_seed(seed + 2))

        def denoise(x: Tensor, sigma: float, index: int) -> Tensor:
            denoised = torch.empty_like(x)
            for adapter in range(rewards):
                chosen = table[index] == adapter
                denoised[chosen] = model.predict(model.unit(adapter), x[chosen], sigma)
            return denoised

        return denoise

    blend, gaps = _watched(planned(Blend(coefficients)), planned(Soup(coefficients)), one(-1))
    with model.installed():
        results: dict[str, Any] = {
            "base": run(one(-1)),
            "blend": run(blend),
            "stochastic, stratified": run(drawn("stratified")),
            "stochastic, independent": run(drawn("independent")),
            "soup": run(planned(Soup(coefficients))),
            "factor-averaged soup": run(one(rewards + 1)),
            "trained for w": run(one(rewards)),
            "MSDDA": _msdda(model, weights, start, torch.Generator().manual_seed(seed + 1)),
        }
    results["linearity gap"] = sum(gaps) / len(gaps)
    results["MSDDA difference"] = float((results["MSDDA"] - results["blend"]).abs().max())
    return results


def _msdda(model: Adapted, weights: list[float], start: Tensor, generator: torch.Generator) -> Tensor:
    """MSDDA's closed-form step with the same variance for every adapter."""
    sigmas = schedule(STEPS)
    x = start * SIGMA_MAX
    for sigma, following in itertools.pairwise(sigmas):
        down, up = split(sigma, following)
        denoised = [model.predict(model.unit(i), x, sigma) for i in range(len(weights))]
        means = [d + (down / sigma) * (x - d) for d in denoised]
        # The last step has no noise; the product of equal Gaussians has the same mean for any variance.
        mean, deviation = fuse_gaussians(means, [up or 1.0] * len(weights), weights)
        x = mean + (deviation if up else 0.0) * torch.randn(x.shape, generator=generator)
    return x


def _watched(blend: Denoise, soup: Denoise, base: Denoise) -> tuple[Denoise, list[float]]:
    """The blend, noting the linearity gap at every step.

    ``|D_blend - D_soup| / |D_blend - D_0|``, root mean squares over the blend's own points.
    """
    gaps: list[float] = []

    def watched(x: Tensor, sigma: float, index: int) -> Tensor:
        denoised = blend(x, sigma, index)
        change = (denoised - base(x, sigma, index)).square().sum()
        gaps.append(float(((denoised - soup(x, sigma, index)).square().sum() / change).sqrt()))
        return denoised

    return watched, gaps


Setting = tuple[tuple[str, ...], float]
"""The names of the rewards, and alpha."""

Measured = dict[Setting, list[dict[str, float]]]
"""For each setting one row of distances and diagnostics per seed."""


def measure(effort: Effort, folder: Path | None = None) -> Measured:
    """Run every setting on every seed; seeds that a stopped run has finished are read from the folder.

    Returns:
        For each setting a row per seed: each method's sliced 2-Wasserstein distance to the true tilted distribution, the
        linearity gap, and the MSDDA difference.
    """
    sets = () if effort.only_pairs else SETS
    settings: list[Setting] = [(pair, alpha) for pair in PAIRS for alpha in ALPHAS] + [(names, 1.0) for names in sets]
    measured: Measured = {setting: [] for setting in settings}
    decisive = {key: value for key, value in asdict(effort).items() if key != "seeds"}
    units = Units(folder, decisive | {"settings": settings, "steps": STEPS})
    for seed in tqdm(effort.seeds, desc="learned", mininterval=5):
        for names, alpha, row in units.result(f"learned-{seed}", lambda seed=seed: _of_seed(settings, seed, effort)):
            measured[tuple(names), alpha].append(row)
    return measured


def _of_seed(
    settings: list[Setting], seed: int, effort: Effort
) -> list[tuple[tuple[str, ...], float, dict[str, float]]]:
    base = train_base(ring(), 10 * seed, effort.base_steps)
    return [
        (names, alpha, row)
        for alpha in ALPHAS
        for names, row in _measure(base, [names for names, value in settings if value == alpha], alpha, seed, effort)
    ]


def summaries(measured: Measured) -> list[dict[str, Any]]:
    """A row for each setting: means over seeds with the half widths of their 95 % intervals.

    These are each method's distance, the linearity gap, and the soup's, the stochastic draws' and the trained adapter's paired
    excess over blend.
    """
    return [_summary(names, alpha, rows) for (names, alpha), rows in measured.items()]


def _measure(
    base: Denoiser, settings: list[tuple[str, ...]], alpha: float, seed: int, effort: Effort
) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    known: dict[str, QuadraticReward] = {reward.name: reward for reward in ring_rewards()}
    used = list(dict.fromkeys(name for names in settings for name in names))
    truths = [_truth([known[name] for name in names], alpha) for names in settings]
    tilts = [ring().tilted(known[name], alpha) for name in used]
    adapters = train_adapters(base, [*tilts, *truths], 10 * seed + 1, effort.adapter_steps)
    singles = dict(zip(used, adapters, strict=False))
    for names, truth, trained in zip(settings, truths, adapters[len(used) :], strict=True):
        weights = [1 / len(names)] * len(names)
        results = run_setting(base, [singles[name] for name in names], trained, weights, 10 * seed + 2, effort.points)
        generator = torch.Generator().manual_seed(10 * seed + 7)
        target = truth.sample(effort.points, generator).float()
        results["floor"] = truth.sample(effort.points, generator).float()
        row = {method: sliced_wasserstein(results[method], target) for method in METHODS}
        yield names, row | {key: results[key] for key in ("linearity gap", "MSDDA difference")}


def _truth(rewards: list[QuadraticReward], alpha: float) -> GaussianMixture:
    return ring().tilted(weighted_reward(rewards, [1 / len(rewards)] * len(rewards)), alpha)


def title(names: Sequence[str]) -> str:
    """A set of rewards in tables and figures."""
    return "/".join(names) if len(names) == 2 else f"{len(names)} rewards"


def _summary(names: tuple[str, ...], alpha: float, rows: list[dict[str, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"rewards": title(names), "alpha": alpha}
    for method in METHODS:
        summary[method] = interval([row[method] for row in rows])
    # Paired over seeds, so that the variation that all methods of a seed share cancels.
    for method in ("soup", "stochastic, stratified", "trained for w"):
        summary[f"{method} - blend"] = interval([row[method] - row["blend"] for row in rows])
    summary["linearity gap"] = interval([row["linearity gap"] for row in rows])
    summary["MSDDA difference"] = max(row["MSDDA difference"] for row in rows)
    return summary
