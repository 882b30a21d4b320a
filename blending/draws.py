"""Draws of the adapter that an image uses at a step.

Every number is a hash of (seed, purpose, image, step). No generator is advanced, so a draw does not depend on the order and
the number of model calls, or on the other images of the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

DRAWS = ("stratified", "independent")


def uniform(seed: int, purpose: str, *key: int) -> float:
    """Compute a number in [0, 1) as a pure function of the arguments: the first 53 bits of their BLAKE2b hash."""
    message = f"{seed}/{purpose}/{'/'.join(map(str, key))}".encode()
    digest = hashlib.blake2b(message, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw(kind: str, probabilities: Sequence[float], seed: int, step: int, steps: int, image: int) -> int:
    """Draw the category that an image uses at a step.

    independent: category i has probability p_i, independently of all other draws.
    stratified: systematic sampling (Madow 1949). The points ``(u + j) / steps``, with one uniform u per image, are looked up
    in the cumulative probabilities, and a random permutation gives each step one of them. The marginal at every step is
    still p. Over the run category i is drawn floor or ceil of ``p_i * steps`` times.

    Args:
        kind: "independent" or "stratified".
        probabilities: float[n], each at least 0, sum 1.
        seed: the run's seed.
        step: 0 .. steps - 1.
        steps: the number of steps of the run.
        image: the image's index.

    Returns:
        0 .. n - 1.

    Raises:
        ValueError: the step is outside the run.
    """
    if not 0 <= step < steps:
        raise ValueError(f"Step {step} of a run of {steps} steps: a draw needs a step inside the run.")
    if kind == "independent":
        return _category(uniform(seed, "draw", image, step), probabilities)
    order = sorted(range(steps), key=lambda other: uniform(seed, "order", image, other))
    point = (uniform(seed, "offset", image) + order.index(step)) / steps
    return _category(point, probabilities)


def _category(point: float, probabilities: Sequence[float]) -> int:
    last = max(i for i, p in enumerate(probabilities) if p > 0)
    for i, edge in enumerate(accumulate(probabilities)):
        if point < edge:
            return i
    return last  # the cumulative sum may end a rounding error below 1


@lru_cache(maxsize=1024)
def round_dependently(run: tuple[tuple[float, ...], ...], seed: int, image: int) -> tuple[int, ...]:
    """Draw an image's category at every step of a run with changing probabilities, in proportion over the run.

    Dependent rounding (Gandhi, Khuller, Parthasarathy, Srinivasan 2006, J. ACM 53(3)) of the table of steps x categories.
    The probability of category i at step t is ``run[t][i]``, and exactly one category is chosen at every step. Over the run
    category i is drawn floor or ceil of ``sum_t run[t][i]`` times.

    Args:
        run: p, float[steps][n], each at least 0, each row's sum 1.
        seed: the run's seed.
        image: the image's index.

    Returns:
        The category of every step, int[steps].
    """
    share = {(step, i): p for step, row in enumerate(run) for i, p in enumerate(row)}
    # A graph of steps 0, 1, ... and categories -1, -2, ..., joined where the choice is open. The steps are in random order.
    joined: dict[int, list[int]] = {vertex: [] for vertex in range(-len(run[0]), len(run))}
    for step in sorted(range(len(run)), key=lambda step: uniform(seed, "order", image, step)):
        for i, p in enumerate(run[step]):
            if _is_open(p):
                joined[step].append(-1 - i)
                joined[-1 - i].append(step)
    turn = 0
    while any(joined.values()):
        edges = [(max(edge), -1 - min(edge)) for edge in pairwise(_walk(joined))]
        more, less = edges[::2], edges[1::2]  # one of each at every step, so its probabilities still sum to 1
        up = min([1 - share[cell] for cell in more] + [share[cell] for cell in less])
        down = min([share[cell] for cell in more] + [1 - share[cell] for cell in less])
        # Up with probability down / (up + down), else down: the expected change is 0.
        change = up if uniform(seed, "round", image, turn) * (up + down) < down else -down
        for cells, signed in ((more, change), (less, -change)):
            for step, i in cells:
                share[step, i] += signed
                if not _is_open(share[step, i]):
                    joined[step].remove(-1 - i)
                    joined[-1 - i].remove(step)
        turn += 1
    return tuple(max(range(len(row)), key=lambda i, step=step: share[step, i]) for step, row in enumerate(run))


def _is_open(share: float) -> bool:
    return 1e-9 < share < 1 - 1e-9


def _walk(joined: dict[int, list[int]]) -> list[int]:
    """Return a path between two dead ends of the graph, or a circle, whose first vertex is its last."""
    path = [min((vertex for vertex in joined if joined[vertex]), key=lambda vertex: len(joined[vertex]))]
    while True:
        onward = [vertex for vertex in joined[path[-1]] if vertex not in path[-2:-1]]
        if not onward:
            return path
        if onward[0] in path:
            return [*path[path.index(onward[0]) :], onward[0]]
        path.append(onward[0])
