"""Random generators keyed by their purpose, so that no draw depends on the number of earlier draws.

A run resumed from a checkpoint, or split over several processes, draws the same numbers for the same trajectory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def keyed_generator(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator whose stream is a function of the seed and the key alone.

    Args:
        seed: the run's seed.
        key: what the numbers are for, e.g. ``("rollout", iteration, trajectory)``.

    Returns:
        A generator on the CPU (so that a run's noise does not depend on the device).
    """
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def trajectory_noise(seed: int, key: tuple[str | int, ...], steps: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one trajectory, float32[steps + 1, C, H, W]: starting latent, then one draw per step."""
    return torch.randn(steps + 1, *shape, generator=keyed_generator(seed, *key))
