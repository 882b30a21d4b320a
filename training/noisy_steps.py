"""The window of noisy steps: the denoising steps that are sampled with noise and trained. The other steps are the ODE."""

from __future__ import annotations

import re

POLICY_GRADIENT_WINDOW = "0.0:0.8"
"""The window that ``auto`` takes for policy gradients. `benchmarks/training_window.py` measures the choice."""

_BOUND = r"(-?\d+|\d*\.\d+)?"
_WINDOW = re.compile(rf"{_BOUND}:{_BOUND}")


def noisy_range(setting: str, steps: int, *, auto: str = "all") -> range:
    """The numbers of the noisy steps.

    Args:
        setting: ``all``; ``first:end`` as in a Python slice, with step numbers (negative ones count from the end) or with
            shares of the run, which have a decimal point; ``auto``.
        steps: the number of denoising steps.
        auto: the setting for which ``auto`` stands.

    Returns:
        The step numbers, 0 the noisiest.

    Raises:
        ValueError: a setting of another form, or a window without a step.
    """
    setting = auto if setting == "auto" else setting
    match = _WINDOW.fullmatch("0:" if setting == "all" else setting)
    if match is None:
        raise ValueError(
            f"sampling.noisy_steps is {setting!r}: write all, auto, or first:end with step numbers (0:-2) or shares (0.0:0.8)"
        )
    first, end = (_step(bound, steps) for bound in match.groups())
    window = range(steps)[first:end]
    if not window:
        raise ValueError(
            f"sampling.noisy_steps {setting!r} leaves none of the {steps} steps noisy: there would be no policy to train"
        )
    return window


def _step(bound: str | None, steps: int) -> int | None:
    if bound is None:
        return None
    return round(float(bound) * steps) if "." in bound else int(bound)
