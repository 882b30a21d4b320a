"""The planner of a method in a diffusers pipeline, from adapters, weights and a KL scale as users give them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ..blending.groups import is_stacked_group, missing_members, stacking_refusal
from ..blending.plans import Blend, Gates, Planner, Soup, Stochastic
from ..blending.preference import Preference
from .adapter_files import Adapter

logger = logging.getLogger("diffusion_blend")

Method = Literal["blend", "stochastic", "soup", "stacked"]

Weights = Sequence[float] | Mapping[str, float]
"""One weight per adapter, in order or by name; adapters that are not named have weight 0."""


def make_planner(method: str, adapters: Sequence[Adapter], weights: Sequence[float], kl_scale: float) -> Planner:
    """The planner of a method.

    Args:
        method: ``blend`` sums predictions; ``stochastic`` draws an adapter for each image and step; ``soup`` averages the
            weight updates; ``stacked`` adds every update times its weight as it is, as diffusers' ``set_adapters`` does, which
            is all that adapters need that were trained to be stacked.
        adapters: in order.
        weights: one per adapter, divided by their sum except for ``stacked``.
        kl_scale: 0 is the base, 1 the adapters.

    Raises:
        TypeError: the KL scale is no number.
        ValueError: an unknown method, or weights or a KL scale that it cannot have.
    """
    kl_scale = _number(kl_scale, "kl_scale")
    _note_group(method, adapters)
    if method == "stacked":  # as diffusers adds them
        return Soup(tuple(kl_scale * weight for weight in Preference(tuple(weights), kl_scale).weights))
    planners: dict[str, Callable[[Gates], Planner]] = {"blend": Blend, "stochastic": Stochastic, "soup": Soup}
    if not isinstance(method, str) or method not in planners:
        raise ValueError(f"method is {method!r}: choose from {', '.join([*planners, 'stacked'])}")
    names = [adapter.name for adapter in adapters]
    known = [adapter.kl_weight for adapter in adapters]
    coefficients = Preference(tuple(weights), kl_scale).coefficients(names, known)
    return planners[method](tuple(float(c) for c in coefficients))


def _note_group(method: str, adapters: Sequence[Adapter]) -> None:
    """Say how a method fits adapters that were trained to be stacked."""
    groups, names = [adapter.group for adapter in adapters], [adapter.name for adapter in adapters]
    if method == "stacked" and any(groups):
        refusal = stacking_refusal(groups, names)
        missing = [] if refusal else missing_members(groups)
        if refusal:
            logger.warning("%s: stacked, they are no model of the mixed reward", refusal)
        if missing:
            logger.warning("the group has more adapters, which count as weight 0: %s", ", ".join(missing))
    elif method in ("blend", "stochastic") and len(adapters) > 1 and is_stacked_group(groups):
        logger.info("%s were trained to be stacked: method='stacked' needs one call a step", ", ".join(names))


def ordered_weights(weights: Weights, names: Sequence[str]) -> list[float]:
    """Weights in the order of the adapters.

    Raises:
        TypeError: neither a sequence of numbers nor a mapping of names to numbers.
        ValueError: a name that no adapter has, a number of weights that differs from the number of adapters, or a weight that
            is negative or not finite.
    """
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise ValueError(f"weights name {unknown[0]!r}, which is none of the adapters {list(names)}")
        found: list[Any] = [weights.get(name, 0.0) for name in names]
    else:
        found = _listed(weights)
    if len(found) != len(names):
        raise ValueError(f"{len(found)} weights for {len(names)} adapters ({', '.join(names)}): give one per adapter")
    return [_weight(weight, name) for weight, name in zip(found, names, strict=True)]


def _listed(weights: Any) -> list[Any]:
    listed = isinstance(weights, Sequence) and not isinstance(weights, str | bytes)
    if listed or getattr(weights, "ndim", 0) == 1:  # of numpy and torch
        return list(weights)
    raise TypeError(
        f"weights is {weights!r}: give one number per adapter, for example weights=[0.3, 0.7], or a mapping of the adapters' "
        "names to numbers"
    )


def _weight(value: Any, name: str) -> float:
    weight = _number(value, f"the weight of adapter {name!r}")
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(
            f"the weight of adapter {name!r} is {weight:g}: it must be a finite number from 0 up. To move away from a reward, "
            "use a negative kl_scale instead"
        )
    return weight


def _number(value: Any, what: str) -> float:
    """A number, also one of numpy or a tensor of one element."""
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass  # said below
    raise TypeError(f"{what} is {value!r}: it must be a number")
