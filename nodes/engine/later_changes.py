"""Changes of a MODEL's weights that come after a blend, where an adapter reads a layer's output.

DoRA and OFT multiply a layer's weight, and the blend takes that from the layer's own output y = W x + b (`updates`). ComfyUI
multiplies the weight of then, and adds what comes later: ``s W + H``. The blend's ``s (W + H)`` differs from that where a node
after it, a hook or a bypass LoRA changes the same layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...blending.adapters import AdapterBank
from .notices import notify

BYPASS = "bypass_lora"
"""The host's name of a bypass LoRA's injections, which do not say which layers they change."""


def patch_counts(patcher: Any, bank: AdapterBank) -> dict[str, int]:
    """Count the patches of the weights and biases of the layers whose output an adapter reads.

    Args:
        patcher: the host's ModelPatcher.
        bank: the adapters.

    Returns:
        Name of a parameter -> number of patches.
    """
    names = [f"{layer}.{part}" for layer in bank.reading_output() for part in ("weight", "bias")]
    return {name: len(patcher.patches.get(name, ())) for name in names}


def say_changes(patcher: Any, bank: AdapterBank, before: Mapping[str, int], adapters: Sequence[str]) -> None:
    """Say where the image differs from ComfyUI's, because a layer whose output an adapter reads was changed after the blend.

    Args:
        patcher: the ModelPatcher of the run.
        bank: the adapters.
        before: `patch_counts` when the blend was put on.
        adapters: their names.
    """
    if not before:
        return
    hooked = {name for patches in patcher.hook_patches.values() for name in patches}
    changed = [name for name, count in patch_counts(patcher, bank).items() if count > before[name] or name in hooked]
    bypassed = BYPASS in getattr(patcher, "injections", {})
    if not changed and not bypassed:
        return
    reading = bank.reading_output()
    layers = set(reading) if bypassed else {name.rpartition(".")[0] for name in changed}
    names = [adapters[index] for index in sorted(set().union(*(reading[layer] for layer in layers)))]
    cause = "a bypass LoRA" if bypassed else "a hook" if hooked.intersection(changed) else "a node after the blend"
    notify(
        f"{', '.join(names)} (DoRA or OFT) multiplies the weights of layers that {cause} changes, too. ComfyUI adds such a "
        "change unmultiplied, so the image differs from Load LoRA's. Put Load LoRA before the blend, or blend all of the LoRAs."
    )
