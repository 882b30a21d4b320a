"""The training algorithms, one file each. A new one is a file here and a line in `ALGORITHMS`."""

from __future__ import annotations

from .ddpo import Ddpo
from .dpok import Dpok
from .draft import Draft
from .protocol import Algorithm
from .rwr import Rwr

ALGORITHMS: dict[str, type[Algorithm]] = {
    "dpok": Dpok,
    "ddpo": Ddpo,
    "rwr": Rwr,
    "draft": Draft,
}
"""The value of ``algorithm.name`` -> its class."""


def algorithm_class(name: str) -> type[Algorithm]:
    """The class of an algorithm.

    Raises:
        ValueError: there is no such algorithm.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm.name is {name!r}: choose one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
