"""The effective share of a blend's pictures by their path weights: how near the blend is to its own target (`path_weights`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...blending.combine import combine, evaluate
from ...blending.path_weights import effective_share, log_weight_change
from ...blending.plans import Blend
from ..intervals import Array
from .steps import Gaussian, StepState


@dataclass
class WeighedBlend:
    """The blend's step, which also adds up the logarithms of the path weights. One object per run.

    A scheduler of diffusers takes the prediction alone, and tells no distribution to weigh.

    Args:
        planner: the blend.
        log_weights: float64[B]; None before a step with noise, and where one model makes the pictures.
    """

    planner: Blend
    log_weights: Tensor | None = None

    def __call__(self, state: StepState) -> Gaussian:
        plan, std = self.planner(state.info), state.std()
        outputs = [state.predict(row) for row in plan.gates]
        mix = [float(c) for c in plan.mix]
        if std > 0 and len(outputs) > 1:
            means = [float(state.policy.output[state.index]) * output for output in outputs]  # the part that differs
            change = log_weight_change(means, mix, std)
            self.log_weights = change if self.log_weights is None else self.log_weights + change
        return Gaussian(state.mean(combine((output.clone() for output in outputs), mix)), std)

    def output(self, state: StepState) -> Tensor:
        """The blend's guided network output, float32[B, C, H, W]."""
        return evaluate(self.planner(state.info), state.predict)


def mean_share(log_weights: Array, prompts: NDArray[np.int64]) -> float:
    """The mean over prompts of the effective share of a prompt's pictures, 1 where all of them count equally.

    Path weights of different prompts cannot be compared, because each prompt has a target of its own.

    Args:
        log_weights: float[n]; nan where they were not measured.
        prompts: the number of each picture's prompt, int[n].

    Returns:
        nan where no prompt has two pictures, or a weight is missing.
    """
    groups = [log_weights[prompts == number] for number in np.unique(prompts)]
    shares = [float(effective_share(torch.as_tensor(group))) for group in groups if len(group) > 1]
    return math.nan if not shares or not np.isfinite(log_weights).all() else float(np.mean(shares))
