"""A reward learned from votes: a weighted sum of other rewards' scores, fitted to pairs of pictures by logistic regression."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts.shares import wilson_interval
from .load import load_rewards
from .protocol import Reward, score

PRIOR = 1.0
"""The standard deviation of a coefficient before any vote. A feature is divided by its own standard deviation."""


@dataclass(frozen=True)
class Taste:
    """The fitted reward as data.

    Attributes:
        features: the names of the rewards whose scores are added.
        means: of each feature over the pictures.
        scales: its standard deviation.
        coefficients: its share, per standard deviation.
        pairs: how many votes it was fitted to.
        hits: how many of these it predicts when it is fitted without them.
    """

    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    coefficients: tuple[float, ...]
    pairs: int
    hits: int

    def text(self) -> str:
        """As JSON."""
        return json.dumps(self.__dict__, indent=1)

    def verdict(self) -> str:
        """What so few votes can and cannot give, in words."""
        low, high = wilson_interval(self.hits, self.pairs)
        said = (
            f"{self.hits} of {self.pairs} votes predicted without them "
            f"(95 % interval {low:.0%} to {high:.0%}; chance is 50 %)."
        )
        if low <= 0.5:
            return (
                f"{said} That is no better than chance: an adapter trained on this reward would not learn your taste. "
                "Vote on more pairs, or choose other rewards as features."
            )
        return (
            f"{said} The reward knows only what its features measure. It can rank pictures like those of the votes; it says "
            "nothing about other subjects, and a long training will exploit it. Train briefly and look at the pictures."
        )


def fit_taste(features: Sequence[str], first: Tensor, second: Tensor, chosen: Tensor) -> Taste:
    """Fit the coefficients.

    Maximizes ``sum_v log sigmoid(s_v b.(x_first - x_second)) - |b|^2 / (2 PRIOR^2)``
    (Bradley and Terry 1952, with a normal prior).

    Args:
        features: F names.
        first: scores of the pairs' first pictures, float[V, F].
        second: of their second ones.
        chosen: 1 where the first was chosen, 0 where the second was, .5 for a tie, float[V].

    Raises:
        ValueError: fewer than 2 pairs with a winner, or a score is not finite.
    """
    both = torch.cat([first, second]).double()
    if not bool(torch.isfinite(both).all()):
        raise ValueError("A score of the pictures is not finite: leave that reward out.")
    decided = chosen != 0.5
    if int(decided.sum()) < 2:
        raise ValueError(f"{int(decided.sum())} votes prefer a picture: at least 2 are needed.")
    means, scales = both.mean(dim=0), both.std(dim=0, correction=0)
    scales = torch.where(scales > 1e-12, scales, torch.ones_like(scales))
    x, y = (first.double() - second.double()) / scales, chosen.double()
    hits = 0
    for left_out in torch.nonzero(decided).flatten().tolist():
        kept = torch.arange(len(x)) != left_out
        hits += int((x[left_out] @ _logistic(x[kept], y[kept]) > 0) == (y[left_out] > 0.5))
    coefficients = _logistic(x, y)
    numbers = [tuple(float(value) for value in values) for values in (means, scales, coefficients)]
    return Taste(tuple(features), numbers[0], numbers[1], numbers[2], int(decided.sum()), hits)


def load_taste(file: Path, folders: Mapping[str, str] | None = None, *, allow_download: bool = False) -> Reward:
    """The reward of a file that ``diffusion-blend taste`` wrote.

    Args:
        file: its JSON.
        folders: name -> local folder, for features with a model.
        allow_download: permit downloads of their models.

    Raises:
        ValueError: a feature that cannot be had.
    """
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    taste = Taste(**fields)
    rewards = load_rewards(taste.features, folders or {}, torch.device("cpu"), allow_download=allow_download)

    def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return combine(taste, torch.stack([score(rewards, images, prompts)[name] for name in taste.features], dim=-1))

    return reward


def combine(taste: Taste, scores: Tensor) -> Tensor:
    """``sum_k b_k (x_k - mean_k) / scale_k`` of scores float[B, F], float[B]."""
    means, scales, coefficients = (
        torch.tensor(values, dtype=scores.dtype) for values in (taste.means, taste.scales, taste.coefficients)
    )
    return (scores - means) / scales @ coefficients


def _logistic(x: Tensor, y: Tensor) -> Tensor:
    """Newton's method; the objective is strictly concave."""
    b = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(x @ b)
        gradient = x.T @ (y - p) - b / PRIOR**2
        hessian = (x * (p * (1 - p))[:, None]).T @ x + torch.eye(len(b), dtype=torch.float64) / PRIOR**2
        step = torch.linalg.solve(hessian, gradient)
        b = b + step * min(1.0, 5.0 / max(float(step.abs().max()), 1e-12))
        if float(step.abs().max()) < 1e-10:
            break
    return b
