"""Which adapter an image uses at a step: draws that depend on nothing but their key.

Every number is a hash of (seed, purpose, image, step): no generator is advanced, so the order and the number of model
calls, and the other images of the batch, cannot change a draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate

DRAWS = ("stratified", "independent")


def uniform(seed: int, purpose: str, *key: int) -> float:
    """A number in [0, 1) that is a pure function of its arguments: the first 53 bits of their BLAKE2b hash."""
    message = f"{seed}/{purpose}/{'/'.join(map(str, key))}".encode()
    digest = hashlib.blake2b(message, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw(kind: str, probabilities: Sequence[float], seed: int, step: int, steps: int, image: int) -> int:
    """The category that an image uses at a step.

    independent: category i with probability p_i, independently of everything else.
    stratified: systematic sampling (Madow 1949): the points ``(u + j) / steps`` with one uniform u per image are looked up
    in the cumulative probabilities, and a random permutation gives each step one of them. The marginal at every step is
    still p, and over the run category i comes up floor or ceil of ``p_i * steps`` times.

    Args:
        kind: "independent" or "stratified".
        probabilities: float[n], each at least 0, sum 1.
        seed: the run's seed.
        step: 0 .. steps - 1.
        steps: how many steps the run has.
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
