"""Miniature set 2: strong adapters of three rewards, and all that methods need to be compared on them.

Every part is made in a folder of its own, one after the other. A part whose files are there is skipped, and a training that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import yaml

from ..blending.file_names import CROSS_END
from ..blending.simplex import lattice
from .adapters import Mixture, mixture_name, train_adapters, train_conditioned, train_group

REWARDS = ("colourfulness", "compressibility", "softness")
"""In the order of the weights of set2_sweep.yaml."""

SETTINGS = ("adapter.yaml", "set2.yaml")
"""The trainer's settings."""

KL_WEIGHTS = {"half_kl": 0.5, "twice_kl": 2.0}
"""Folder -> factor on the KL weight. An adapter at half of it is the truth for KL scale 2, at twice for KL scale .5."""

GROUP_TIMES = 2
"""The group that is trained to be stacked has as many iterations as twice its rewards' adapters: half of what the adapters of the
twelve mixtures have, which it replaces."""

FIT = {
    "steps": "10",
    "eta": "1",
    "guidance": "1",
    "trajectories": "24",
    "iterations": "300",
    "learning_rate": "1e-3",
    "rank": "16",
}
"""Options of ``diffusion-blend bake``: runs as the adapters were trained on."""


@dataclass(frozen=True)
class Part:
    """A part of the set.

    Attributes:
        name: folder and name, like ``mixtures/colourfulness-0.5_softness-0.5``.
        content: in words.
        files: that it makes.
        needs: files of other parts.
        make: makes the files.
    """

    name: str
    content: str
    files: tuple[Path, ...]
    needs: tuple[Path, ...]
    make: Callable[[], object]

    @property
    def is_made(self) -> bool:
        """Whether all files are there."""
        return all(file.exists() for file in self.files)


def mixtures() -> list[Mixture]:
    """The twelve mixtures in quarters of at least two of the rewards."""
    points = [dict(zip(REWARDS, weights, strict=True)) for weights in lattice(len(REWARDS), 4)]
    shares = [{name: float(share) for name, share in point.items() if share > 0} for point in points]
    return [mixture for mixture in shares if len(mixture) > 1]


def parts(out: Path, seed: int = 0, training: Sequence[str] = (), baking: Sequence[str] = ()) -> list[Part]:
    """Return all parts, those first that others need.

    Args:
        out: folder of the set.
        seed: of the trainings and the fits.
        training: further words for ``diffusion-blend train``.
        baking: further words for ``diffusion-blend bake``.
    """
    words, bakes = ["--run.seed", str(seed), *training], ["--seed", str(seed), *baking]
    kl_weight = float(yaml.safe_load((Path(__file__).parent / "set2.yaml").read_text())["algorithm"]["kl_weight"])
    singles: list[Mixture] = [{name: 1.0} for name in REWARDS]
    found = [_trained(out / "adapters", mixture, kl_weight, words) for mixture in singles]
    found.append(_group(out / "stacked", kl_weight, words))
    found.append(_crosses(out, bakes))
    found.append(_conditioned(out / "conditioned", kl_weight, words))
    found += [_trained(out / "mixtures", mixture, kl_weight, words) for mixture in mixtures()]
    # A fit takes longer than a training, so only the mixtures nearest to the middle of the pairs and of the triangle are fitted.
    found += [_distilled(out, mixture, bakes) for mixture in mixtures() if 0.5 in mixture.values()]
    even: list[Mixture] = [{a: 0.5, b: 0.5} for a, b in combinations(REWARDS, 2)]
    for folder, factor in KL_WEIGHTS.items():
        other = ["--algorithm.kl_weight", str(factor * kl_weight)]
        found += [_trained(out / folder, m, factor * kl_weight, words + other) for m in (*singles, *even)]
    return found


def chosen_parts(found: Sequence[Part], only: Sequence[str]) -> list[Part]:
    """The parts of these names or folders; all of them without names.

    Raises:
        ValueError: there is no part of a name.
    """
    folders = list(dict.fromkeys(part.name.partition("/")[0] for part in found))
    for name in only:
        if name not in folders and name not in [part.name for part in found]:
            raise ValueError(
                f"--only {name}: no part of set 2; give {', '.join(folders)}, or a name that --list prints"
            )
    return [part for part in found if not only or part.name in only or part.name.partition("/")[0] in only]


def make(chosen: Sequence[Part]) -> None:
    """Make parts, one after the other, and say what each makes. Those that are there are skipped.

    Raises:
        ValueError: a part needs files of another one that are not there, or the trainer or the bake refuses.
    """
    for number, part in enumerate(chosen, 1):
        state = "is there already" if part.is_made else part.content
        sys.stdout.write(f"[{number} of {len(chosen)}] {part.name}: {state}\n")
        sys.stdout.flush()
        missing = [str(file) for file in part.needs if not file.exists()]
        if part.is_made:
            continue
        if missing:
            raise ValueError(
                f"{part.name} is baked from files that are not there ({', '.join(missing)}): make them first"
            )
        part.make()


def _trained(folder: Path, mixture: Mixture, kl_weight: float, words: Sequence[str]) -> Part:
    name = mixture_name(mixture)
    content = f"an adapter trained for {_sum(mixture)} at KL weight {kl_weight:g}"
    work = partial(train_adapters, [mixture], folder, words, SETTINGS)
    return Part(f"{folder.name}/{name}", content, (folder / f"{name}.safetensors",), (), work)


def _group(folder: Path, kl_weight: float, words: Sequence[str]) -> Part:
    content = f"one adapter each for {', '.join(REWARDS)}, trained to be stacked, at KL weight {kl_weight:g}"
    files = tuple(folder / f"{name}.safetensors" for name in REWARDS)
    return Part(folder.name, content, files, (), partial(train_group, REWARDS, folder, words, SETTINGS, GROUP_TIMES))


def _conditioned(folder: Path, kl_weight: float, words: Sequence[str]) -> Part:
    content = f"one adapter for {', '.join(REWARDS)} that reads the preference, at KL weight {kl_weight:g}"
    files = (folder / "conditioned.safetensors",)
    return Part(folder.name, content, files, (), partial(train_conditioned, REWARDS, folder, words, SETTINGS))


def _crosses(out: Path, words: Sequence[str]) -> Part:
    sources = tuple(out / f"adapters/{name}.safetensors" for name in REWARDS)
    pairs = combinations(range(1, len(REWARDS) + 1), 2)
    files = tuple(out / f"cross/set2-{i}-{j}{CROSS_END}" for i, j in pairs)
    bake = partial(_bake, "cross", sources, out / f"cross/set2{CROSS_END}", words)
    return Part("cross", "a cross adapter for each pair of the adapters", files, sources, bake)


def _distilled(out: Path, mixture: Mixture, words: Sequence[str]) -> Part:
    name = mixture_name(mixture)
    sources = tuple(out / f"adapters/{reward}.safetensors" for reward in mixture)
    file = out / f"distilled/{name}.safetensors"
    weights = ["--weights", *map(str, mixture.values())]
    bake = partial(_bake, "distil", sources, file, [*weights, *words])
    return Part(f"distilled/{name}", f"one LoRA fitted to the blend at {_sum(mixture)}", (file,), sources, bake)


def _bake(method: str, sources: Sequence[Path], output: Path, words: Sequence[str]) -> None:
    from ..pipelines.command import main

    here = Path(__file__).parent
    output.parent.mkdir(parents=True, exist_ok=True)
    given = ["--method", method, "--base", str(here / "weights/base"), "--prompts", str(here / "prompts.txt")]
    fit = [word for name, value in FIT.items() for word in (f"--{name}", value)]
    if main([*given, "--adapters", *map(str, sources), "--output", str(output), *fit, *words]):
        raise ValueError(f"{output} was not baked: the reason stands above")


def _sum(mixture: Mixture) -> str:
    return " + ".join(f"{share:g} {name}" for name, share in mixture.items())
