"""The cost of an experiment before it runs: pictures, network calls, hours on a named card, and disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...training.config import TrainConfig
from ...training.prompts import load_prompts
from ..sweep.config import SweepConfig
from .experiment import Experiment

CARDS = {"a100": 5.46 / 50}
"""Card -> seconds of a guided call of SD 1.5 at 512 pixels, per picture; a100 is Table 1 of arXiv 2505.18547."""

BYTES_PER_PIXEL = 1.7
"""Of a PNG file of a photograph, about."""
_BACKWARD = 3.0
"""A forward and a backward pass in units of the forward pass."""


@dataclass(frozen=True)
class Cost:
    """One part of an experiment.

    Attributes:
        part: its name.
        pictures: how many are made.
        calls: guided network evaluations of one picture each.
        bytes: of the files that stay.
    """

    part: str
    pictures: int
    calls: float
    bytes: float


def training_cost(name: str, config: TrainConfig) -> Cost:
    """The cost of a training: sampling with the base beside the policy, and updates with their backward passes."""
    sampling, algorithm = config.sampling, config.algorithm
    pictures = config.run.iterations * sampling.samples
    measured = 2 if algorithm.kl_in_return and algorithm.name == "dpok" else 1
    updates = algorithm.updates * config.optimizer.accumulate * sampling.batch * config.run.iterations
    return Cost(f"train {name}", pictures, pictures * sampling.steps * measured + _BACKWARD * updates, 50e6)


def sweep_costs(config: SweepConfig) -> list[Cost]:
    """The cost of each method of a sweep, computations that are the same counted once.

    Raises:
        ValueError: see `points.make_points`.
    """
    from ...pipelines.adapter_files import AdapterFile
    from ..sweep.methods import sampler
    from ..sweep.points import make_points
    from ..sweep.prepare import weights_of
    from ..sweep.recipes import Files

    # Files that do not exist yet are known by their names; their KL weights are the experiment's, so equal.
    adapters = [AdapterFile(name, {}, 1.0, name) for name in config.adapters]
    morl = {weights: AdapterFile(key, {}, 1.0, key) for weights, key in weights_of("morl", config.morl, config).items()}
    prompts = len(load_prompts(config.prompts.source, config.prompts.count, config.prompts.seed))
    images = config.images_per_prompt * prompts or config.images_per_point
    side = config.base.resolution or (1024 if "xl" in config.base.path.lower() else 512)
    seen: set[str] = set()
    costs: dict[str, Cost] = {}
    for point in make_points(config, Files(adapters, morl)):
        if point.folder in seen:
            continue
        seen.add(point.folder)
        per_step = sampler(point.recipe).calls(point.recipe) + (
            config.measure_kl and not config.scheduler and point.method != "base"
        )
        before = costs.get(point.method, Cost(f"sweep {point.method}", 0, 0.0, 0.0))
        costs[point.method] = Cost(
            before.part,
            before.pictures + images,
            before.calls + images * per_step * config.steps,
            before.bytes + min(images, config.save_images) * side**2 * BYTES_PER_PIXEL + 300 * images,
        )
    return list(costs.values())


def cost_table(experiment: Experiment, seconds_per_call: float) -> str:
    """The experiment's costs as a Markdown table with a line for the sum."""
    costs = [training_cost(name, config) for name, config in experiment.trainings.items()]
    costs += sweep_costs(experiment.sweep)
    costs.append(_total(costs))
    lines = ["| part | pictures | guided calls | hours | disk |", "|---|---|---|---|---|"]
    lines += [
        f"| {cost.part} | {cost.pictures:,} | {cost.calls:,.0f} | {cost.calls * seconds_per_call / 3600:,.1f} | "
        f"{_size(cost.bytes)} |"
        for cost in costs
    ]
    return "\n".join(lines) + "\n"


def _total(costs: Sequence[Cost]) -> Cost:
    return Cost(
        "all", sum(c.pictures for c in costs), math.fsum(c.calls for c in costs), math.fsum(c.bytes for c in costs)
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
