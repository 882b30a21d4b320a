"""Trains the shipped adapters again, or adapters of mixed rewards, each in a run with the same settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .reward_names import CONDITIONED_BASE, REWARD_NAMES

SHIPPED = ("brightness", "colourfulness", "compressibility", "contrast", "softness", "warmth")
"""The rewards of the adapters in ``weights/adapters``."""

ADAPTER = "adapter.yaml"
"""Settings of every training."""

WITHOUT_GRADIENT = "alignment.yaml"
"""Settings that replace those of a training whose reward has no gradient, or that shall not use it."""

Mixture = Mapping[str, float]
"""Reward -> weight; the weights sum to 1."""


def read_mixture(text: str) -> Mixture:
    """A reward, or several with their shares.

    Args:
        text: ``softness``, or ``softness:1,colourfulness:3`` (divided by their sum).

    Raises:
        ValueError: a reward this world does not have, or a share that is no number above 0.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition(":")
        if name not in REWARD_NAMES:
            raise ValueError(f"{name!r} is no reward of this world: choose from {', '.join(REWARD_NAMES)}")
        if name in shares:
            raise ValueError(f"{text!r} names {name!r} twice: give each reward one share")
        if not re.fullmatch(r"(\d+(\.\d*)?|\.\d+)?", share) or (share and float(share) == 0):
            raise ValueError(
                f"the share of {name} is {share!r}: give a number above 0, like softness:1,colourfulness:3"
            )
        shares[name] = float(share or 1)
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def mixture_name(mixture: Mixture) -> str:
    """The name of a mixture's run and file: ``softness``, or ``softness-0.25_colourfulness-0.75``."""
    if len(mixture) == 1:
        return next(iter(mixture))
    return "_".join(f"{name}-{share:.3g}" for name, share in mixture.items())


def train_adapters(
    mixtures: Sequence[Mixture], out: Path, arguments: Sequence[str] = (), settings: Sequence[str] = (ADAPTER,)
) -> list[Path]:
    """Train an adapter for each mixture.

    Args:
        mixtures: the rewards of each adapter.
        out: folder of the runs; a run found there goes on where it stopped.
        arguments: further words for ``diffusion-blend train``.
        settings: files of this folder with the trainer's settings; later ones replace entries of earlier ones. Mixtures with
            alignment take `WITHOUT_GRADIENT` as the last one.

    Returns:
        The adapter files, ``out/NAME.safetensors``.

    Raises:
        ValueError: as the trainer's.
    """
    files = []
    for mixture in mixtures:
        name = mixture_name(mixture)
        trained = _train(mixture, out / name, _settings(mixture, settings), arguments)
        file = out / f"{name}.safetensors"
        _copy_named(trained, file, next(iter(mixture)) if len(mixture) == 1 else json.dumps(dict(mixture)), name)
        files.append(file)
    return files


def train_group(
    rewards: Sequence[str],
    out: Path,
    arguments: Sequence[str] = (),
    settings: Sequence[str] = (ADAPTER,),
    times: int = 1,
) -> list[Path]:
    """Train a group of adapters that are made to be stacked, one for each reward (`training.stacking`).

    The run has ``times`` as many iterations for each reward as an adapter that is trained alone.

    Args:
        rewards: at least two.
        out: the run's folder is ``out/run``; a run found there goes on where it stopped.
        arguments, settings: see `train_adapters`.
        times: at least 1.

    Returns:
        The adapter files, ``out/REWARD.safetensors``, in the order of the rewards.

    Raises:
        ValueError: a reward is named twice, or as the trainer's.
    """
    from ..training.command import parse
    from ..training.stacking import member_files

    _check_each_once(rewards)
    weights, run = dict.fromkeys(rewards, 1.0), out / "run"
    settings = _settings(weights, settings)
    given = _words(weights, run, settings)
    iterations = times * len(rewards) * parse(given).run.iterations
    words = ["--algorithm.stacked", "true", "--run.iterations", str(iterations), *arguments]
    folder = _train(weights, run, settings, words)
    names = member_files(parse([*given, *words]))
    files = [out / f"{reward}.safetensors" for reward in rewards]
    for place, (reward, name, file) in enumerate(zip(rewards, names, files, strict=True), 1):
        _copy_named(folder / name, file, reward, f"{reward} (to be stacked, {place} of {len(rewards)})")
    return files


def train_conditioned(
    rewards: Sequence[str], out: Path, arguments: Sequence[str] = (), settings: Sequence[str] = (ADAPTER,)
) -> Path:
    """Train one adapter that reads the preference from the prompt (`conditioned`).

    It has as many parameters as a group for these rewards and is trained for as many iterations, with a preference of its own
    for each picture.

    Args:
        rewards, out, arguments, settings: see `train_group`.

    Returns:
        The adapter file, ``out/conditioned.safetensors``.

    Raises:
        ValueError: a reward is named twice, or as the trainer's.
    """
    from ..training.command import parse
    from .conditioned import write_prompts

    _check_each_once(rewards)
    run, prompts = out / "run", out / "prompts.txt"
    plain = [*_words(dict.fromkeys(rewards, 1.0), run, settings), *arguments]
    alone = parse(plain)
    iterations, times = len(rewards) * alone.run.iterations, len(rewards)
    write_prompts(
        Path(__file__).parent / "prompts.txt", prompts, rewards, iterations * alone.sampling.samples, alone.run.seed
    )
    reward = json.dumps({"diffusion_blend.miniature.conditioned:mixture": 1.0})
    words = ["--prompts.source", str(prompts), "--rewards", reward, "--base.path", CONDITIONED_BASE]
    words += ["--adapter.rank", str(times * alone.adapter.rank), "--adapter.alpha", str(times * alone.adapter.alpha)]
    trained = _run([*plain, *words, "--run.iterations", str(iterations)], run)
    file = out / "conditioned.safetensors"
    _copy_named(trained, file, json.dumps(list(rewards)), f"conditioned on the weights of {', '.join(rewards)}")
    return file


def _check_each_once(rewards: Sequence[str]) -> None:
    twice = [reward for i, reward in enumerate(rewards) if reward in rewards[:i]]
    if twice:
        raise ValueError(f"reward {twice[0]!r} is named twice: each reward has one adapter, so name it once")


def _settings(weights: Mixture, settings: Sequence[str]) -> Sequence[str]:
    """The files of settings for these rewards."""
    return (*settings, WITHOUT_GRADIENT) if "alignment" in weights and WITHOUT_GRADIENT not in settings else settings


def _words(weights: Mixture, run: Path, settings: Sequence[str]) -> list[str]:
    """The words of ``diffusion-blend train`` for weighted rewards."""
    from .rewards import DIFFERENTIABLE, REWARDS

    here = Path(__file__).parent
    words = [word for file in settings for word in ("--config", str(here / file))]
    words += ["--output", str(run), "--prompts.source", str(here / "prompts.txt")]
    replaced = {} if WITHOUT_GRADIENT in settings else DIFFERENTIABLE
    terms = {replaced.get(name, REWARDS[name]): weight for name, weight in weights.items()}
    return [*words, "--rewards", json.dumps({f"{term.__module__}:{term.__name__}": w for term, w in terms.items()})]


def _train(weights: Mixture, run: Path, settings: Sequence[str], arguments: Sequence[str]) -> Path:
    return _run([*_words(weights, run, settings), *arguments], run)


def _run(words: Sequence[str], run: Path) -> Path:
    from ..training.command import parse
    from ..training.train import train

    resume = ["--resume"] if (run / "checkpoints").exists() else []
    return train(parse([*words, *resume]))


def _copy_named(trained: Path, file: Path, reward: str, title: str) -> None:
    """Copy an adapter under its reward's name, also where a differentiable form of the reward was trained on."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save

    from ..artifacts.files import write_atomically

    with safe_open(str(trained), framework="pt") as content:
        header = content.metadata()
    header["diffusion_blend.reward"], header["modelspec.title"] = reward, title
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, save(load_file(trained), metadata=header))
