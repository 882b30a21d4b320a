"""Ways of asking: each is a generator that yields a pair, is sent the vote, and keeps its best option up to date."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ...preference_learning.kernels import KERNELS
from ...preference_learning.search import Search
from ...preference_learning.space import Region, option_of
from ...preference_learning.votes import FIRST, SECOND, Option, Vote
from .people import KL_RANGE


@dataclass
class Asking:
    """One person being asked.

    Args:
        adapters: m.
        rng: for ways that draw options.
        votes: so far.
        find: computes the option that would be taken now.
    """

    adapters: int
    rng: np.random.Generator
    votes: list[Vote] = field(default_factory=list)
    find: Callable[[], Option] = field(init=False)

    def __post_init__(self) -> None:
        self.best = Search(self.adapters, *KL_RANGE).middle(Region(self.adapters, *KL_RANGE))

    @property
    def best(self) -> Option:
        """The option that would be taken now; found only when it is asked for, since that takes time."""
        return self.find()

    @best.setter
    def best(self, option: Option) -> None:
        self.find = lambda: option

    def draw(self) -> Option:
        """An option, uniform in the region."""
        return option_of([*self.rng.dirichlet(np.ones(self.adapters)), self.rng.uniform(*KL_RANGE)])


Pairs = Iterator[tuple[Option, Option]]
Strategy = Callable[[Asking], Pairs]


def _duels(kernel: str) -> Strategy:
    def ask(asking: Asking) -> Pairs:
        search = Search(asking.adapters, *KL_RANGE, kernel=KERNELS[kernel])
        while True:
            posterior = search.posterior(asking.votes)
            asking.find = functools.partial(search.best, tuple(asking.votes), posterior)
            yield search.next_pair(asking.votes, posterior)

    return ask


def _random_pairs(asking: Asking) -> Pairs:
    """Random pairs; the same model as that of the duels says what is best."""
    search = Search(asking.adapters, *KL_RANGE)
    while True:
        asking.find = functools.partial(search.best, tuple(asking.votes))
        yield asking.draw(), asking.draw()


def _keep_better(asking: Asking, others: Iterator[Option]) -> Pairs:
    """The best so far against another option; the better one stays."""
    asking.best = next(others)
    for other in others:
        yield asking.best, other
        if asking.votes[-1].outcome == SECOND:
            asking.best = other


def _random_choice(asking: Asking) -> Pairs:
    return _keep_better(asking, (asking.draw() for _ in iter(int, 1)))


def _grid_walk(asking: Asking) -> Pairs:
    """The coarsest grid of at least ten mixtures at three KL scales, in order, again and again."""
    divisions = 1
    while len(Region(asking.adapters, *KL_RANGE).mixtures(divisions)) < 10:
        divisions += 1
    grid = [
        option_of([*mixture, scale])
        for scale in (1.0, *KL_RANGE)
        for mixture in Region(asking.adapters, *KL_RANGE).mixtures(divisions)
    ]
    return _keep_better(asking, (grid[i % len(grid)] for i in range(10_000)))


def _sliders(asking: Asking) -> Pairs:
    """One slider after another, up or down by a step that is halved after a round in which nothing was better."""
    step, sliders = 0.4, asking.adapters + 1
    while True:
        moved = False
        for slider in range(sliders):
            for sign in (1, -1):
                other = _slid(asking.best, slider, sign * step)
                yield asking.best, other
                if (
                    (asking.votes[-1].outcome == FIRST)
                    if asking.votes[-1].first == other
                    else (asking.votes[-1].outcome == SECOND)
                ):
                    asking.best, moved = other, True
                    break
        step = step if moved else step / 2


def _slid(option: Option, slider: int, by: float) -> Option:
    """An option with one slider moved; the other weights keep their proportions."""
    weights, scale = np.array(option.weights), option.kl_scale
    if slider == len(weights):
        return Option(option.weights, round(float(np.clip(scale + by, *KL_RANGE)), 2))
    weights[slider] = np.clip(weights[slider] + by, 0, 1)
    return option_of([*(weights if weights.sum() > 0 else np.ones(len(weights)) / len(weights)), scale])


STRATEGIES: dict[str, Strategy] = {
    "duels": _duels("gaussian process"),
    "duels, quadratic": _duels("quadratic"),
    "random pairs": _random_pairs,
    "random choice": _random_choice,
    "grid walk": _grid_walk,
    "sliders": _sliders,
}
