"""Attaches a blend to a MODEL without patching a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy.patcher_extension import WrappersMP

from ...blending.adapters import AdapterBank
from ...blending.cross import Crossed
from ...blending.plans import Planner
from ..adapters.files import RewardLoRAs
from ..adapters.fitting import bank_patcher
from ..adapters.groups import pairs_of
from ..host import Executor, Patcher
from .later_changes import patch_counts, say_changes
from .refusals import (
    check_multiplied,
    check_one_model,
    multiplied_weights,
    refuse_runs_without_blend,
    refuse_weights,
)
from .rows import Verdicts
from .run import KEY, BlendRun

EVALUATIONS = ("auto", "batched", "sequential")


@dataclass(frozen=True, eq=False)
class AttachedBlend:
    """OUTER_SAMPLE wrapper on a MODEL. The state of a run lives in `BlendRun`.

    Args:
        bank: the adapters' factors.
        planner: makes the plan of a step.
        evaluation: one of `EVALUATIONS`.
        images: image indices of the latent batch, or None for 0, 1, 2, ...
        verdicts: of the runs with these adapters, on calls with several rows of gates.
        multiplied: the number of patches that multiplied a weight before the blend was put on.
        patched: `later_changes.patch_counts` of then.
        names: the adapters' names.
        running: the guiders of the runs that go on now.
    """

    bank: AdapterBank = field(repr=False)
    planner: Planner
    evaluation: str
    images: tuple[int, ...] | None
    verdicts: Verdicts = field(repr=False)
    multiplied: int = 0
    patched: Mapping[str, int] = field(default_factory=dict, repr=False)
    names: tuple[str, ...] = ()
    running: list[Any] = field(default_factory=list, repr=False)

    def run(self) -> BlendRun:
        """The state of a new run, to be entered."""
        names = self.names[: self.bank.weighted]
        return BlendRun(self.bank, self.planner, self.evaluation, self.images, self.verdicts, names)

    def __call__(self, executor: Executor, *args: Any, **kwargs: Any) -> Any:
        check_multiplied(executor.class_obj.model_patcher, self.multiplied)
        check_one_model(executor.class_obj, KEY)
        say_changes(executor.class_obj.model_patcher, self.bank, self.patched, self.names)
        self.running.append(executor.class_obj)
        try:
            with self.run() as run:
                return run.sample(executor, *args, **kwargs)
        finally:
            self.running.pop()


def attach(
    model: Patcher,
    loras: RewardLoRAs,
    planner: Planner,
    evaluation: str = "auto",
    images: Sequence[int] | None = None,
) -> Any:
    """Clone a MODEL so that every sampling run with it blends.

    The clone shares the weights and their identity with the original (no ``add_patches``). Switching between blends, and back
    to the plain model, therefore loads and patches nothing.

    Args:
        model: the host's ModelPatcher.
        loras: the adapters.
        planner: makes the plan of a step.
        evaluation: "sequential" (one call per row), "batched" (all rows in one call while memory allows) or "auto".
        images: image indices of the latent batch, None for 0, 1, 2, ...

    Raises:
        ValueError: the model already carries a blend, the evaluation is unknown, or an adapter does not fit.
    """
    if evaluation not in EVALUATIONS:
        raise ValueError(f"evaluation is {evaluation!r}: choose one of {', '.join(EVALUATIONS)}.")
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        raise ValueError(
            "This MODEL already carries a blend. Connect the model from before the first Blend Model, and chain all adapters "
            "through Load Reward LoRAs instead."
        )
    if loras.crosses:
        planner = Crossed(planner, pairs_of(loras))
    bank = bank_patcher(loras, model)
    blended = model.clone()
    blended.set_additional_models(KEY, [bank])
    verdicts = bank.attachments.setdefault(KEY, Verdicts())
    indices = None if images is None else tuple(images)
    wrapper = AttachedBlend(
        bank.model,
        planner,
        evaluation,
        indices,
        verdicts,
        multiplied_weights(model),
        patch_counts(model, bank.model),
        tuple(adapter.name for adapter in (*loras.adapters, *loras.crosses)),
    )
    blended.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, wrapper)
    refuse_weights(blended)
    refuse_runs_without_blend(blended, wrapper.running)
    return blended
