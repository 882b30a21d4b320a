"""The interval of a share, such as the votes that a reward predicts."""

from __future__ import annotations

import math

_NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """The 95 % interval of a share.

    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`` with ``p = successes / trials``, ``n = trials``
    and ``z = 1.96`` (Wilson 1927, Journal of the American Statistical Association 22, 209-212).

    Args:
        successes: of the trials, 0 to ``trials``. Both may be effective numbers, so they need not be whole.
        trials: above 0.
    """
    share, z = successes / trials, _NORMAL
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return (middle - half) / (1 + z * z / trials), (middle + half) / (1 + z * z / trials)
