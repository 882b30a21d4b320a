"""Bounds of settings, written beside the field and checked by one function."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

LARGEST_SEED = 2**32 - 1
"""Of numpy's random numbers."""


def bounded(
    default: Any, *, minimum: float | None = None, above: float | None = None, maximum: float | None = None
) -> Any:
    """A dataclass field with a default and bounds, which `check_bounds` reads.

    Args:
        default: the default.
        minimum: the smallest allowed value.
        above: a value that has to be exceeded.
        maximum: the largest allowed value.
    """
    return dataclasses.field(default=default, metadata={"minimum": minimum, "above": above, "maximum": maximum})


def check_bounds(settings: Any, prefix: str = "") -> None:
    """Check every bounded number of a settings dataclass and of the dataclasses in it.

    Args:
        settings: a dataclass instance.
        prefix: the dotted name under which the instance is known, with a dot at the end; empty at the top.

    Raises:
        ValueError: a number is not finite or outside its bounds. The message has the setting's dotted name, the value and
            the bounds. Numbers without bounds must be finite, too.
    """
    for name, value, metadata in _fields(settings, prefix):
        if isinstance(value, bool | str):  # a word that stands for a number, such as auto
            continue
        minimum, above, maximum = (metadata.get(bound) for bound in ("minimum", "above", "maximum"))
        low = (minimum is None or value >= minimum) and (above is None or value > above)
        if not (math.isfinite(value) and low and (maximum is None or value <= maximum)):
            raise ValueError(f"{name} is {value}: it must be {range_text(value, minimum, above, maximum)}")


def _fields(settings: Any, prefix: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{prefix}{field.name}.")
        elif "minimum" in field.metadata or isinstance(value, float):
            yield f"{prefix}{field.name}", value, dict(field.metadata)


def range_text(value: Any, minimum: float | None, above: float | None, maximum: float | None) -> str:
    """The allowed range of a value in words, for example ``a whole number of at least 1``."""
    number = "a whole number" if isinstance(value, int) else "a finite number"
    low = f" of at least {minimum:g}" if minimum is not None else f" above {above:g}" if above is not None else ""
    high = f" and at most {maximum:g}" if maximum is not None else ""
    return f"{number}{low}{high}"
