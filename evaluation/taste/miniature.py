"""The search on real pictures: a hidden mix of the miniature's rewards, and the true reward of the preference that was found.

The pictures of a lattice of preferences are made once and their rewards kept. Between the lattice's points each picture's rewards
are interpolated, so that many people can be asked without making a picture again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artifacts.files import write_atomically
from ...preference_learning.search import Search
from ...preference_learning.space import Region, points_of
from ...preference_learning.votes import FIRST, SECOND, Option, Vote
from .people import KL_RANGE

Array = NDArray[np.float64]

ADAPTERS = ("brightness", "warmth", "colourfulness")
PROMPTS = (
    "a red circle",
    "two yellow squares",
    "a cyan triangle on the left",
    "a purple triangle and a green triangle",
)
DIVISIONS, SCALES = 4, (0.5, 1.0, 1.5)
_SHIPPED = Path(__file__).parents[2] / "miniature/weights/adapters"


def lattice() -> Array:
    """The preferences whose pictures are made, float[P, 4]."""
    mixtures = Region(len(ADAPTERS), *KL_RANGE).mixtures(DIVISIONS)
    return np.array([[*mixture, scale] for scale in SCALES for mixture in mixtures])


def measure(folder: Path, each: int = 8, steps: int = 10) -> Array:
    """Rewards of the lattice's pictures, float[P, I, R]; the same noise for every preference.

    Args:
        folder: one file a preference; those that are there are not made again.
        each: pictures of a prompt.
        steps: denoising steps.
    """
    points = lattice()
    files = [folder / f"rewards_{number}.json" for number in range(len(points))]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    if missing:
        make = _maker(each, steps)
        for number in missing:
            write_atomically(files[number], json.dumps(make(points[number])).encode())
    return np.array([json.loads(file.read_text(encoding="utf-8")) for file in files])


def _maker(each: int, steps: int) -> Callable[[Array], list[list[float]]]:
    import torch

    from ...miniature.model import load_pipeline
    from ...miniature.rewards import REWARDS
    from ...pipelines import BlendedPipeline

    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    blended = BlendedPipeline(pipe, {name: str(_SHIPPED / f"{name}.safetensors") for name in ADAPTERS})
    prompts = [prompt for prompt in PROMPTS for _ in range(each)]

    def make(point: Array) -> list[list[float]]:
        noise = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
        made: Any = blended(
            prompts,
            weights=[float(weight) for weight in point[:-1]],
            kl_scale=float(point[-1]),
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=noise,
            output_type="pt",
        )
        images = made.images.float().cpu()
        return torch.stack([REWARDS[name](images, prompts) for name in ADAPTERS], dim=-1).tolist()

    return make


def find(rewards: Array, people: int, duels: int = 10) -> list[float]:
    """How far the found preference's true reward is from that of the lattice's best point, in standard deviations.

    A person's utility is a mix of the rewards, uniform on the simplex. A vote compares one picture, with the same noise under
    both preferences. The true reward of a preference is the mean over all pictures.

    Args:
        rewards: see `measure`.
        people: how many hidden mixes.
        duels: votes of each.

    Returns:
        float[people]: 0 or less where the found preference is as good as the best of the lattice. The standard deviation is
        that of a prompt's pictures at equal weights.
    """
    from scipy.interpolate import RBFInterpolator

    points = lattice()
    at = RBFInterpolator(_plane(points), rewards.reshape(len(points), -1), kernel="cubic")
    lost = []
    for number in range(people):
        rng = np.random.default_rng([11, number])
        mix = rng.dirichlet(np.ones(len(ADAPTERS)))

        def scores(options: Sequence[Option], mix: Array = mix) -> Array:
            """The mixed reward of every picture, float[N, I]."""
            values = at(_plane(points_of(options)))
            return values.reshape(len(options), *rewards.shape[1:]) @ mix

        search, votes = Search(len(ADAPTERS), *KL_RANGE), list[Vote]()
        for _ in range(duels):
            pair = search.next_pair(votes)
            first, second = scores(pair)[:, rng.integers(rewards.shape[1])]
            votes.append(Vote(*pair, FIRST if first > second else SECOND))
        mixed = rewards @ mix
        found = float(scores([search.best(votes)]).mean())
        lost.append((float(mixed.mean(axis=1).max()) - found) / _spread(mixed))
    return lost


def _spread(mixed: Array) -> float:
    """The standard deviation of a prompt's pictures at equal weights and KL scale 1."""
    points = lattice()
    middle = int(np.argmin(np.square(points[:, :-1] - 1 / len(ADAPTERS)).sum(axis=1) + np.square(points[:, -1] - 1)))
    by_prompt = mixed[middle].reshape(len(PROMPTS), -1)
    return float(np.sqrt(by_prompt.var(axis=1, ddof=1).mean()))


def _plane(points: Array) -> Array:
    """Without the last weight, which follows from the others."""
    return np.column_stack([points[:, :-2], points[:, -1]])
