"""Refusals of a sweep's settings, before anything is loaded."""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
from pathlib import Path

from ...artifacts.files import check_folder, find_file
from ...artifacts.remote import Mirror, is_url
from ...artifacts.settings import check_bounds
from ...miniature.reward_names import CONDITIONED_BASE, REWARD_NAMES
from ...rewards.catalogue import check_names
from .config import SweepConfig
from .methods import METHODS

RESERVED = {
    "method", "kl_scale", "image", "prompt", "number", "kl", "seconds", "calls", "kl_calls", "r(w)", "settings", "recipe",
    "picture",
}  # fmt: skip
"""Columns of the table of samples, which no adapter and no reward can have as its name."""

_MOST_PREFERENCES = 10_000


def check_config(config: SweepConfig) -> None:
    """Find impossible and contradictory settings.

    Raises:
        ValueError: naming the setting, the value and a way out.
    """
    check_bounds(config)
    if not math.isfinite(config.guidance_scale):
        raise ValueError(f"guidance_scale is {config.guidance_scale}: it must be a finite number")
    if not config.adapters or not config.rewards or not config.methods or not config.kl_scales:
        raise ValueError("a sweep needs at least one adapter, one reward, one method and one KL scale")
    unknown = [method for method in config.methods if method not in METHODS]
    if unknown:
        raise ValueError(f"unknown method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    repeated = [method for method in METHODS if config.methods.count(method) > 1]
    if repeated:
        raise ValueError(f"methods names {repeated[0]!r} {config.methods.count(repeated[0])} times: give it once")
    _check_points(config)
    _check_scheduler(config)
    _check_base_path(config.base.path)
    if config.base.frames != 1:
        raise ValueError(f"base.frames is {config.base.frames}: a sweep compares images and no videos, so set it to 1")
    check_names(list(config.rewards.values()))
    _check_names(config)
    _check_etas(config)
    _check_method_weights(config)
    _check_affine(config)
    for method in config.methods:
        unscored = [name for name in config.adapters if name not in config.rewards]
        if METHODS[method].follows_rewards and unscored:
            raise ValueError(
                f"{method} follows the rewards, and there is none named {unscored[0]!r} as that adapter is"
            )
    for method in ("morl", "distilled"):
        for text in getattr(config, method):
            weights_in(method, text, config)
    mirror = mirror_of(config)
    if mirror is None:
        check_folder(Path(config.output))
    else:
        mirror.check()


def weights_in(method: str, text: str, config: SweepConfig) -> tuple[float, ...]:
    """The preference that a key of ``morl`` or ``distilled`` names, as it is written there.

    Raises:
        ValueError: no numbers, or not one for each adapter.
    """
    try:
        weights = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise ValueError(f"{method} {text!r}: give the weights as numbers with commas, like '0.5,0.5'") from error
    if len(weights) != len(config.adapters):
        raise ValueError(
            f"{method} {text!r}: {len(weights)} weights for {len(config.adapters)} adapters: give one for each"
        )
    return weights


def _files(config: SweepConfig) -> list[tuple[str, str]]:
    """Settings and the files that they name."""
    named = {"adapters": config.adapters, "morl": config.morl, "stacked": config.stacked, "distilled": config.distilled}
    found = [(f"{setting}.{name}", file) for setting, files in named.items() for name, file in files.items()]
    found += [("conditioned", config.conditioned)] if config.conditioned else []
    lists = {"cross": config.cross, "external_scores": config.external_scores}
    return found + [(setting, file) for setting, files in lists.items() for file in files]


def check_files(config: SweepConfig) -> None:
    """Find files that are not there, before the libraries that read them are imported, which takes seconds.

    Raises:
        ValueError: naming the setting and the file.
    """
    for setting, file in _files(config):
        if not Path(file).exists() and not find_file(file).exists():
            raise ValueError(f"{setting} is {file!r}: no such file in {Path.cwd()}")


def mirror_of(config: SweepConfig) -> Mirror | None:
    """The folder and the copy of a sweep whose output is a URL; None for a plain folder.

    Raises:
        ValueError: a folder for the work without a URL, or a URL without a name.
    """
    if not is_url(config.output):
        if config.work_folder:
            raise ValueError(
                f"work_folder is {config.work_folder!r}, but output {config.output!r} is a folder itself: leave work_folder out"
            )
        return None
    name = config.output.split("://", 1)[1].rstrip("/").rpartition("/")[2]
    if not name:
        raise ValueError(f"output {config.output!r} names no folder: give one, like {config.output.rstrip('/')}/sweep")
    return Mirror(config.output, Path(config.work_folder or f"runs/{name}"), ("claims",))


def _check_points(config: SweepConfig) -> None:
    preferences = math.comb(config.grid + len(config.adapters) - 1, len(config.adapters) - 1) if config.grid else 0
    if preferences > _MOST_PREFERENCES:
        raise ValueError(
            f"grid {config.grid} with {len(config.adapters)} adapters is {preferences:,} preferences: at most "
            f"{_MOST_PREFERENCES:,} are possible"
        )
    if "conditioned" in config.methods:
        _check_conditioned(config)
    for method in config.methods if config.eta == 0 and not config.scheduler else ():
        if METHODS[method].needs_noise:
            raise ValueError(f"{method} needs steps with noise, and eta is 0: give --eta 1, or leave the method out")


def _check_conditioned(config: SweepConfig) -> None:
    if config.base.path != CONDITIONED_BASE:
        raise ValueError(
            f"conditioned needs a base that reads the preference from the prompt, and base.path is {config.base.path!r}: give "
            f"{CONDITIONED_BASE}, or leave the method out"
        )
    unknown = sorted(set(config.adapters) - set(REWARD_NAMES))
    if unknown:
        raise ValueError(
            f"conditioned: {', '.join(unknown)} is no reward of the miniature: name the adapters after its rewards"
        )


def _check_base_path(path: str) -> None:
    """Find a base that cannot be there, before the libraries that load it are imported, which takes seconds."""
    if Path(path).exists() or path.endswith((".ckpt", ".pt", ".pth", ".bin")):
        return
    module, separator, function = path.partition(":")
    if separator and function and importlib.util.find_spec(module.partition(".")[0] or "?") is not None:
        return
    if separator:
        raise ValueError(f"base {path!r}: there is no module {module!r} here")
    if path.startswith((".", "/")) or path.count("/") != 1:
        raise ValueError(f"base {path!r}: no such folder or file, and not a hub id (owner/name)")


def _check_scheduler(config: SweepConfig) -> None:
    if not config.scheduler:
        if config.scheduler_options:
            raise ValueError("scheduler_options are given without a scheduler: name its class as scheduler")
        return
    known = scheduler_names()
    if known and config.scheduler not in known:
        near = difflib.get_close_matches(config.scheduler, known, 3, 0.4) or ["EulerAncestralDiscreteScheduler"]
        raise ValueError(f"scheduler {config.scheduler!r} is no class of diffusers; near are {', '.join(near)}")
    for method in config.methods:
        reason = METHODS[method].needs_transition
        if reason:
            raise ValueError(
                f"{method} needs the distribution of each step ({reason}), and {config.scheduler} gives only the next "
                "latents: leave the method out, or leave the scheduler out"
            )


def scheduler_names() -> list[str]:
    """The scheduler classes of diffusers, read from its files, because importing it takes seconds; empty without diffusers."""
    found = importlib.util.find_spec("diffusers")
    if found is None or found.origin is None:
        return []
    files = (Path(found.origin).parent / "schedulers").glob("scheduling_*.py")
    texts = [file.read_text(encoding="utf-8") for file in files]
    return sorted({name for text in texts for name in re.findall(r"^class (\w+Scheduler)\(", text, re.MULTILINE)})


def _check_names(config: SweepConfig) -> None:
    for name in [*config.rewards, *config.adapters]:
        if name in RESERVED or name.startswith("w_"):
            raise ValueError(f"the name {name!r} is taken by a column of the table: choose another")
    if config.stacked and set(config.stacked) != set(config.adapters):
        raise ValueError(
            f"stacked names {list(config.stacked)}, but the adapters are {list(config.adapters)}: give a file of the group for "
            "each adapter's name"
        )
    for name in config.reward_folders:
        if name not in config.rewards.values():
            raise ValueError(
                f"reward_folders names {name!r}, which is not among the rewards {list(config.rewards.values())}"
            )


def _check_etas(config: SweepConfig) -> None:
    for name, eta in config.etas.items():
        if name not in config.adapters:
            raise ValueError(f"etas names {name!r}, which is none of the adapters {list(config.adapters)}")
        if not 0 < eta <= 1 or (config.eta == 0 and "msdda" in config.methods):
            raise ValueError(f"etas.{name} is {eta:g} beside eta {config.eta:g}: both must be above 0 and at most 1")


def _check_method_weights(config: SweepConfig) -> None:
    for name, weights in config.method_weights.items():
        if name not in config.methods or name == "base":
            raise ValueError(
                f"method_weights names {name!r}, which is none of the methods with weights {config.methods}"
            )
        if not weights:
            raise ValueError(
                f"method_weights.{name} is empty: give preferences, or leave it out for those of all methods"
            )


def _check_affine(config: SweepConfig) -> None:
    for name, numbers in config.affine.items():
        if name not in config.rewards or len(numbers) != 2 or not all(map(math.isfinite, numbers)) or numbers[0] == 0:
            raise ValueError(
                f"affine.{name} is {numbers}: give a reward's name and two numbers, a factor that is not 0 and an offset"
            )
