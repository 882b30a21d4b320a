"""The training algorithms, one file each. A new one is a file here and an entry in `ALGORITHMS`.

This file needs the standard library only, so that a command can refuse settings without loading torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..noisy_steps import POLICY_GRADIENT_WINDOW
from . import requirements as needs

if TYPE_CHECKING:
    from .protocol import Algorithm


@dataclass(frozen=True)
class AlgorithmEntry:
    """One algorithm.

    Attributes:
        module: its file in this folder.
        attribute: its class.
        title: a line of help.
        requirements: functions of the settings that raise a ValueError for those it cannot work with.
        window: the noisy steps that ``sampling.noisy_steps auto`` stands for.
        not_stacked: why it cannot train adapters to be stacked; empty where it can.
    """

    module: str
    attribute: str
    title: str
    requirements: tuple[needs.Requirement, ...] = ()
    window: str = "all"
    not_stacked: str = ""

    def load(self) -> type[Algorithm]:
        """Load the file and return the class."""
        return getattr(importlib.import_module(f".{self.module}", __package__), self.attribute)


ALGORITHMS = {
    "dpok": AlgorithmEntry(
        "dpok",
        "Dpok",
        "policy gradient with a KL penalty, a value function and a replay buffer",
        (needs.a_step_fits_the_buffer,),
        POLICY_GRADIENT_WINDOW,
    ),
    "ddpo": AlgorithmEntry(
        "ddpo",
        "Ddpo",
        "policy gradient on fresh data, rewards normalized per prompt, no KL penalty",
        (needs.whole_passes_over_steps,),
        POLICY_GRADIENT_WINDOW,
        "it compares an image's reward with earlier rewards of the prompt, which had other preferences",
    ),
    "grpo": AlgorithmEntry(
        "grpo",
        "Grpo",
        "policy gradient on groups of images of one prompt, rewards normalized within the group",
        (needs.whole_groups, needs.whole_passes_over_steps),
        POLICY_GRADIENT_WINDOW,
    ),
    "nft": AlgorithmEntry(
        "nft", "Nft", "regression on better against worse images of a prompt, for any sampler", (needs.whole_groups,)
    ),
    "rwr": AlgorithmEntry(
        "rwr",
        "Rwr",
        "regression on the base's samples, weighted by their reward",
        (needs.kl_weight_above_zero, needs.several_images_a_prompt),
    ),
    "draft": AlgorithmEntry(
        "draft",
        "Draft",
        "gradient of a differentiable reward through the sampler",
        (needs.whole_passes_over_images, needs.draft_steps_fit),
    ),
}
"""The value of ``algorithm.name`` -> its entry."""


def entry_of(name: str) -> AlgorithmEntry:
    """The entry of an algorithm.

    Raises:
        ValueError: there is no such algorithm.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm.name is {name!r}: choose one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]
