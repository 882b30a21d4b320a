"""Uses of a blended MODEL or CLIP that would ignore the blend: merging, saving, and multiplying its weights."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP

KEY = "diffusion_blend"

WEIGHTS_ONLY = (
    "This MODEL carries a blend, which is no change of its weights: {} would ignore it. Use the MODEL from before Blend Model, "
    "and put Blend Model last. For adapters that shall be part of the weights, use ComfyUI's Load LoRA, or make one LoRA file of "
    "the blend with Bake Blend and load that."
)

CLIP_WEIGHTS_ONLY = (
    "This CLIP carries the adapters of Blend Text Encoder, which are no change of its weights: {} would ignore them. Use the "
    "CLIP from before Blend Text Encoder, and put Blend Text Encoder last. For adapters that shall be part of the weights, use "
    "ComfyUI's Load LoRA, or make one LoRA file of the blend with Bake Blend and load that."
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


def refuse_weights(patcher: Any, text: str = WEIGHTS_ONLY) -> None:
    """Let a blended MODEL or CLIP refuse to give its weights for a merge or a file, and its clones too.

    Args:
        patcher: the host's ModelPatcher.
        text: of the error, with a place for the use that is refused.
    """

    def guard_clone(_: Any, clone: Any) -> None:
        _guard(clone, text)

    _guard(patcher, text)
    patcher.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, guard_clone)


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


def _guard(patcher: Any, text: str) -> None:
    # By a weak reference: the host frees a model with its last user, and a circle would keep it.
    own = weakref.ref(patcher)
    kind = type(patcher)

    def get_key_patches(filter_prefix: str | None = None) -> Any:
        if filter_prefix is not None:  # without a prefix the host asks for itself, when it registers hooks
            raise ValueError(text.format("a merge"))
        return kind.get_key_patches(own(), filter_prefix)

    def model_state_dict(filter_prefix: str | None = None) -> Any:
        if filter_prefix is not None:  # without a prefix other nodes only ask for the names of the weights
            raise ValueError(text.format("Extract and Save LoRA"))
        return kind.model_state_dict(own(), filter_prefix)

    def add_patches(patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> Any:
        if strength_patch == -strength_model and any(isinstance(patch, list) for patch in patches.values()):
            raise ValueError(text.format("the difference to another one (Model Subtract, CLIP Subtract)"))
        return kind.add_patches(own(), patches, strength_patch, strength_model)

    def state_dict_for_saving(*_: Any, **__: Any) -> Any:
        raise ValueError(text.format("a saved file"))

    for refusing in (get_key_patches, model_state_dict, add_patches, state_dict_for_saving):
        setattr(patcher, refusing.__name__, refusing)
