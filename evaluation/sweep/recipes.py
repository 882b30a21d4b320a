"""What decides the pictures of a method at a point: its recipe. This file imports torch only where a recipe is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from . import runs
from .config import SweepConfig

if TYPE_CHECKING:
    from ...blending.plans import Gates
    from ...pipelines.adapter_files import AdapterFile

NEGLIGIBLE = 1e-12
"""A coefficient nearer to 0 than this needs no call."""

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """The adapter files of a sweep.

    Attributes:
        adapters: in the order of the weights.
        morl: preference -> the adapter trained for it.
        stacked: a group that was trained to be stacked, in the order of the weights; empty where the adapters are one.
        crosses: cross adapters of pairs of the adapters, in any order.
        distilled: preference -> the adapter that was distilled from the blend at it.
        conditioned: an adapter that reads the preference from the prompt.
    """

    adapters: Sequence[AdapterFile]
    morl: Mapping[Gates, AdapterFile] = field(default_factory=dict)
    stacked: Sequence[AdapterFile] = ()
    crosses: Sequence[AdapterFile] = ()
    distilled: Mapping[Gates, AdapterFile] = field(default_factory=dict)
    conditioned: AdapterFile | None = None

    @property
    def beside(self) -> list[AdapterFile]:
        """All files but the adapters."""
        single = [self.conditioned] if self.conditioned else []
        return [*self.morl.values(), *self.stacked, *self.crosses, *self.distilled.values(), *single]


@dataclass(frozen=True)
class Asked:
    """A point of a sweep as it was asked for.

    Attributes:
        config: the sweep's settings.
        files: its adapter files.
        weights: the preference, float[m], sum 1.
        coefficients: c, float[m].
    """

    config: SweepConfig
    files: Files
    weights: Gates
    coefficients: Gates

    @property
    def etas(self) -> list[float]:
        """Each adapter's own noise scale."""
        return [self.config.etas.get(adapter.name, self.config.eta) for adapter in self.files.adapters]


def blended(name: str) -> Callable[[Asked], Recipe | None]:
    def recipe(asked: Asked) -> Recipe | None:
        return single_model(asked) or {"sampler": name, "coefficients": list(asked.coefficients)}

    return recipe


def single_model(asked: Asked) -> Recipe | None:
    """The recipe of the base or of one adapter alone, where the coefficients ask for nothing else."""
    used = [i for i, c in enumerate(asked.coefficients) if abs(c) > NEGLIGIBLE]
    if not used:
        return {"sampler": "base"}
    if len(used) > 1 or _base_share(asked.coefficients) != 0:
        return None
    return {"sampler": "adapter", "coefficients": [float(i == used[0]) for i in range(len(asked.coefficients))]}


def _base_share(coefficients: Sequence[float]) -> float:
    from ...blending.plans import base_coefficient

    return base_coefficient(tuple(coefficients))


def drawn(name: str) -> Callable[[Asked], Recipe | None]:
    def recipe(asked: Asked) -> Recipe | None:
        from ...blending.plans import Stochastic

        single = single_model(asked)
        if single is None:
            Stochastic(asked.coefficients, runs.DRAWS[name])  # refuses what cannot be drawn
        return single or {"sampler": name, "coefficients": list(asked.coefficients)}

    return recipe


def msdda(asked: Asked) -> Recipe | None:
    single = single_model(asked)
    own_noise = [eta for eta, c in zip(asked.etas, asked.coefficients, strict=True) if abs(c) > NEGLIGIBLE]
    if single is not None and (single["sampler"] == "base" or own_noise == [asked.config.eta]):
        return single
    return {"sampler": "msdda", "coefficients": list(asked.coefficients), "etas": asked.etas}


def factor_soup(asked: Asked) -> Recipe | None:
    single = single_model(asked)
    if single is None and math.fsum(asked.coefficients) == 0:
        raise ValueError("factor-soup: coefficients of sum 0 give no average; leave it out")
    return single or {"sampler": "factor-soup", "coefficients": list(asked.coefficients)}


def trained_for(name: str) -> Callable[[Asked], Recipe | None]:
    """Recipes of a method that has a file of its own for each preference; a corner without one is the adapter alone."""

    def recipe(asked: Asked) -> Recipe | None:
        files = {"morl": asked.files.morl, "distilled": asked.files.distilled}[name]
        if asked.weights in files:
            return {"sampler": name, "file": files[asked.weights].digest}
        return single_model(asked)

    return recipe


def stacked(asked: Asked) -> Recipe | None:
    from ...blending.groups import stacking_refusal

    group = asked.files.stacked or asked.files.adapters
    refusal = stacking_refusal([adapter.group for adapter in group], [adapter.name for adapter in group])
    if refusal:
        raise ValueError(f"stacked: {refusal}: give the files of one group as stacked, or leave the method out")
    coefficients = list(asked.coefficients)
    if not asked.files.stacked:
        return single_model(asked) or {"sampler": "stacked", "coefficients": coefficients}
    return {"sampler": "stacked", "coefficients": coefficients, "files": [adapter.digest for adapter in group]}


def crossed(asked: Asked) -> Recipe | None:
    """The recipe of a soup with cross adapters, of which there must be one for each pair.

    Raises:
        ValueError: a file that is no cross adapter or is one of other adapters, or a pair without its file or with several.
    """
    from ...blending.cross import find_pairs, is_cross

    adapters, crosses = asked.files.adapters, asked.files.crosses
    groups = [file.group for file in crosses if file.group is not None and is_cross(file.group)]
    if len(groups) < len(crosses):
        others = [file.name for file in crosses if not is_cross(file.group)]
        raise ValueError(
            f"cross: {', '.join(others)}: no cross adapter; give files of 'diffusion-blend bake --method cross'"
        )
    found = find_pairs(groups, [adapter.fingerprint for adapter in adapters])
    for file, group, pair in zip(crosses, groups, found, strict=True):
        if pair is None:
            raise ValueError(
                f"cross: {file.name} is the cross adapter of {' and '.join(group.pair_names)}, which are not both among the "
                "adapters of this sweep: bake cross adapters of these very files"
            )
    there = [tuple(sorted(pair)) for pair in found if pair is not None]
    for i, j in combinations(range(len(adapters)), 2):
        if there.count((i, j)) != 1:
            count = "no cross adapter" if (i, j) not in there else "more than one cross adapter"
            raise ValueError(
                f"cross: there is {count} of {adapters[i].name} and {adapters[j].name}: give one file for each pair as cross, "
                "as 'diffusion-blend bake --method cross' writes them, or leave the method out"
            )
    files = [file.digest for file in crosses]
    return single_model(asked) or {"sampler": "cross", "coefficients": list(asked.coefficients), "files": files}


def composed(name: str) -> Callable[[Asked], Recipe | None]:
    def recipe(asked: Asked) -> Recipe | None:
        if all(abs(c) <= NEGLIGIBLE for c in asked.coefficients):
            return {"sampler": "base"}
        used = [float(abs(c) > NEGLIGIBLE) for c in asked.coefficients]
        if sum(used) == 1:
            return {"sampler": "adapter", "coefficients": used}
        own = {"block": asked.config.switch_steps} if name == "switch" else {}
        return {"sampler": name, "coefficients": used, **own}

    return recipe


def conditioned(asked: Asked) -> Recipe | None:
    if asked.files.conditioned is None:
        raise ValueError("conditioned: no adapter file is given as conditioned: give one, or leave the method out")
    return {"sampler": "conditioned", "weights": list(asked.weights), "file": asked.files.conditioned.digest}


def corrected(asked: Asked) -> Recipe | None:
    chosen = {"particles": asked.config.particles, "resample_below": asked.config.resample_below}
    coefficients = list(asked.coefficients)
    return single_model(asked) or {"sampler": "corrected", "coefficients": coefficients, **chosen}


def code(asked: Asked) -> Recipe | None:
    from .points import reward_scales

    chosen = {"block": asked.config.code_block, "candidates": asked.config.code_candidates}
    scales = reward_scales(asked.config, asked.files.adapters)
    return {"sampler": "code", "weights": list(asked.weights), "scales": scales, **chosen}


def rgg(asked: Asked) -> Recipe | None:
    return {"sampler": "rgg", "weights": list(asked.weights), "alpha": asked.config.rgg_alpha}
