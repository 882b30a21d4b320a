"""Scores of images by several rewards, and the best of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scores:
    """A table: one row an image, one column a reward; larger is better.

    Args:
        names: the rewards', each once.
        columns: one a name, one number an image.

    Raises:
        ValueError: a name is used twice.
    """

    names: tuple[str, ...]
    columns: tuple[tuple[float, ...], ...] = field(repr=False)

    def __post_init__(self) -> None:
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise ValueError(
                f"The scores already have a column {twice[0]!r}: give the second one another name in Score Images."
            )

    def __len__(self) -> int:
        return len(self.columns[0])

    def column(self, name: str) -> tuple[float, ...]:
        """One reward's scores.

        Raises:
            ValueError: there is no such reward.
        """
        if name not in self.names:
            raise ValueError(f"There are no scores named {name!r}, only {', '.join(self.names)}.")
        return self.columns[self.names.index(name)]

    def followed_by(self, name: str, values: Sequence[float]) -> Scores:
        """One more column.

        Raises:
            ValueError: the name is taken, or the number of images differs.
        """
        if len(values) != len(self):
            raise ValueError(
                f"{len(values)} images, but the scores connected are of {len(self)}: score the same images in both nodes."
            )
        return Scores((*self.names, name), (*self.columns, tuple(values)))

    def rows(self, numbers: Sequence[int]) -> Scores:
        """The scores of some images, in the order given."""
        return Scores(self.names, tuple(tuple(column[i] for i in numbers) for column in self.columns))

    def means(self) -> tuple[float, ...]:
        """The mean of every column."""
        return tuple(math.fsum(column) / len(column) for column in self.columns)

    def text(self) -> str:
        """The table for reading, with the means below."""
        widths = [max(len(name), 9) for name in self.names]
        lines = [("image", *(name.rjust(width) for name, width in zip(self.names, widths, strict=True)))]
        for title, values in [
            *((str(i), row) for i, row in enumerate(zip(*self.columns, strict=True))),
            ("mean", self.means()),
        ]:
            lines.append(
                (title.rjust(5), *(f"{value:{width}.4f}" for value, width in zip(values, widths, strict=True)))
            )
        return "\n".join("  ".join(line) for line in lines)


def joined(tables: Sequence[Scores]) -> Scores:
    """Tables of the same rewards below one another.

    Raises:
        ValueError: their rewards differ.
    """
    first = tables[0]
    for other in tables[1:]:
        if other.names != first.names:
            raise ValueError(
                f"Some images are scored by {', '.join(first.names)}, others by {', '.join(other.names)}: "
                "score all of them by the same rewards, in the same order."
            )
    columns = zip(*(table.columns for table in tables), strict=True)  # of one reward: a part a table
    return Scores(first.names, tuple(tuple(itertools.chain(*parts)) for parts in columns))


def utilities(scores: Scores, weights: Sequence[float], standardise: bool) -> list[float]:
    """One number an image: the weighted mean of its scores.

    ``u = sum_k w_k z_k`` with ``w`` divided by their sum and ``z_k = (r_k - mean) / std`` over the images (population
    standard deviation; 0 for a reward that is the same on all), or ``z_k = r_k``.

    Args:
        scores: K rewards of B images.
        weights: one a reward in order, at least 0; missing ones are 0.
        standardise: whether z is standardised.

    Returns:
        float[B].

    Raises:
        ValueError: a weight above 0 for a reward that is not there, a negative or non-finite one, or none above 0.
    """
    for position, weight in enumerate(weights, 1):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight_{position} is {weight}: it must be a finite number from 0 up.")
        if weight > 0 and position > len(scores.names):
            raise ValueError(
                f"weight_{position} is {weight}, but there are only the scores {', '.join(scores.names)}: set it to 0 or "
                "connect another Score Images."
            )
    total = math.fsum(weights)
    if total == 0:
        raise ValueError(f"All weights are 0 for {', '.join(scores.names)}: raise at least one.")
    columns = [_standardised(column) if standardise else column for column in scores.columns]
    used = [(weight / total, column) for weight, column in zip(weights, columns, strict=False) if weight > 0]
    return [math.fsum(weight * column[i] for weight, column in used) for i in range(len(scores))]


def pareto_front(across: Sequence[float], up: Sequence[float]) -> list[int]:
    """The points that no other beats: none is at least as good in both and better in one.

    Args:
        across: first reward, float[n], larger is better.
        up: second one, float[n].

    Returns:
        Their indices, by rising first reward; equal points are all in.
    """
    best: tuple[float, float] | None = None  # the largest second reward so far, and the first reward it came with
    front = []
    for i in sorted(range(len(across)), key=lambda i: (-across[i], -up[i])):
        if best is None or up[i] > best[0] or (up[i], across[i]) == best:
            front.append(i)
            best = (up[i], across[i])
    return sorted(front, key=lambda i: (across[i], -up[i], i))


def _standardised(column: Sequence[float]) -> tuple[float, ...]:
    mean = math.fsum(column) / len(column)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in column) / len(column))
    if spread <= 1e-12 * max(map(abs, column)):  # equal but for rounding
        return (0.0,) * len(column)
    return tuple((value - mean) / spread for value in column)
