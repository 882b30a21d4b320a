"""Uses of a blended MODEL that would ignore the blend: merging, saving, and multiplying its weights."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP

KEY = "diffusion_blend"

WEIGHTS_ONLY = (
    "This MODEL carries a blend, which is no change of its weights: {} would ignore it. Use the MODEL from before Blend Model, "
    "and put Blend Model last. For adapters that shall be part of the weights, use ComfyUI's Load LoRA."
)


TWO_MODELS = (
    "This guider evaluates the negative with another MODEL than the positive, and a blend takes part in both or in none. Connect "
    "the same blended MODEL to both inputs, or use CFG Guider."
)


def refuse_runs_without_blend(patcher: Any, running: Sequence[Any]) -> None:
    """Let a blended MODEL refuse a run that the host does not start as a blend: as a guider's second MODEL, or in training.

    Args:
        patcher: the host's ModelPatcher.
        running: the guiders of the blended runs that go on now.
    """

    def check(_: Any) -> None:
        if not running:
            raise ValueError(TWO_MODELS)

    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, check)


def check_one_model(guider: Any, key: str) -> None:
    """Refuse a guider whose negative has a MODEL without this blend.

    Args:
        guider: the host's guider.
        key: the name of the blend's wrapper.

    Raises:
        ValueError: it has.
    """
    other = getattr(guider, "uncond_model_patcher", None)
    if other is not None and _blends(other, key) != _blends(guider.model_patcher, key):
        raise ValueError(TWO_MODELS)


def _blends(patcher: Any, key: str) -> list[Any]:
    return patcher.get_wrappers(WrappersMP.OUTER_SAMPLE, key)


def refuse_weights(patcher: Any) -> None:
    """Let a blended MODEL refuse to give its weights for a merge or a file, and its clones too.

    Args:
        patcher: the host's ModelPatcher.
    """
    _guard(patcher)
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _guard_clone)


def multiplied_weights(patcher: Any) -> int:
    """Return the number of patches that multiply a weight of a MODEL: those of merges and of attention-multiply nodes."""
    return sum(patch[2] != 1.0 for patches in patcher.patches.values() for patch in patches)


def check_multiplied(patcher: Any, before: int) -> None:
    """Refuse a MODEL whose weights were multiplied after the blend was put on it.

    Args:
        patcher: the ModelPatcher of the run.
        before: the number of such patches when the blend was put on.

    Raises:
        ValueError: there are more now.
    """
    if multiplied_weights(patcher) > before:
        raise ValueError(
            "A node after Blend Model merges or multiplies the MODEL's weights (Model Merge, or an attention multiply), and "
            "the adapters beside them would stay as they are. Put Blend Model last: after that node."
        )


def _guard(patcher: Any) -> None:
    # By a weak reference: the host frees a model with its last user, and a circle would keep it.
    own = weakref.ref(patcher)
    kind = type(patcher)

    def get_key_patches(filter_prefix: str | None = None) -> Any:
        if filter_prefix is not None:  # without a prefix the host asks for itself, when it registers hooks
            raise ValueError(WEIGHTS_ONLY.format("a merge"))
        return kind.get_key_patches(own(), filter_prefix)

    def state_dict_for_saving(*_: Any, **__: Any) -> Any:
        raise ValueError(WEIGHTS_ONLY.format("a saved file"))

    patcher.get_key_patches = get_key_patches
    patcher.state_dict_for_saving = state_dict_for_saving


def _guard_clone(_: Any, clone: Any) -> None:
    _guard(clone)
