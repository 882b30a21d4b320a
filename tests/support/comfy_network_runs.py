"""Tiny networks under a blend: by every evaluation, and with images that have adapters of their own.

The truth is the sum of the predictions of copies that the host patched; for images with draws of their own, one plain call for
each adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.model_management
import nodes as host_nodes
import torch
from comfy_adapters import hooks_on, predict, write
from comfy_networks import Architecture
from comfy_world import blend_model, difference, load_loras, preference
from torch import Tensor

WEIGHTS = (0.3, 0.7)
TOLERANCE = 1e-4
KEY = "diffusion_blend"
COLUMNS = ("sequential", "batched", "auto", "stochastic per image", "plain model after", "rows in one call")
RIGHT = "right"


class NeverTrusted(dict[Any, bool]):
    """Verdicts by which every image is taken from a plain call."""

    def get(self, *_: Any) -> bool:
        return False


class Setting:
    """One architecture: the plain MODEL, two adapters, and copies that the host patched with them."""

    def __init__(self, architecture: Architecture, folder: Path) -> None:
        self.architecture = architecture
        self.model = architecture.model()
        self.tensors = [architecture.adapter(seed) for seed in (1, 2)]
        self.copies = [architecture.patched(tensors) for tensors in self.tensors]
        slug = "".join(letter for letter in architecture.name if letter.isalnum())
        for number, tensors in enumerate(self.tensors):
            write(folder, f"{slug}-{number}", tensors)
        self.files = [f"{slug}-{number}.safetensors" for number in range(2)]

    def sample(self, model: Any, batch: int = 1, steps: int = 2) -> Tensor:
        """Run the host's KSampler."""
        positive, negative = (self.architecture.conditioning(seed) for seed in (1, 2))
        latent = self.architecture.empty(batch)
        inputs = (model, 5, steps, 4.0, "euler", "simple", positive, negative, latent)
        samples = host_nodes.common_ksampler(*inputs)[0]["samples"]
        if self.architecture.beside is None:
            return samples
        return torch.cat([part.flatten(1) for part in samples.unbind()], dim=1)  # the video and its sound

    def with_own_text(self, copy: Any, call: dict[str, Any]) -> dict[str, Any]:
        """The call with the text as the copy's network prepares it."""
        if not self.architecture.prepares_texts:
            return call
        batch = call["input"].shape[0] // len(call["cond_or_uncond"])
        text = self.architecture.text_of(copy, call["cond_or_uncond"], batch)
        return {**call, "c": {**call["c"], "c_crossattn": text}}

    def reference(self) -> Any:
        """A MODEL that sums the copies' predictions."""

        def summed(_: Any, call: dict[str, Any]) -> Any:
            parts = zip(WEIGHTS, self.copies, strict=True)
            return sum(weight * predict(copy, self.with_own_text(copy, call)) for weight, copy in parts)

        model = self.model.clone()
        model.set_model_unet_function_wrapper(summed)
        return model


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Let `auto` put all rows of a plan in one call."""
    with mock.patch.object(comfy.model_management, "is_device_cpu", lambda _: False):
        yield


def outcomes(architecture: Architecture, folder: Path) -> dict[str, str]:
    """Run an architecture by every evaluation: "right", or by how much it is wrong."""
    setting = Setting(architecture, folder)
    plain, expected = setting.sample(setting.model), setting.sample(setting.reference())
    if not bool(torch.isfinite(expected).all()) or difference(plain, expected) <= 1e-3:
        raise AssertionError(f"the adapters show no effect in the tiny {architecture.name}")
    loras, found = load_loras(setting.files), {}
    with as_on_a_gpu():
        for evaluation in ("sequential", "batched", "auto"):
            model = blend_model(setting.model, loras, preference(*WEIGHTS), evaluation=evaluation)
            found[evaluation] = _outcome(setting.sample(model), expected)
        drawn = blend_model(setting.model, loras, preference(1, 1), "stochastic")
        together = setting.sample(drawn, batch=2, steps=4)
        (bank,) = drawn.get_additional_models_with_key(KEY)
        verdicts = dict(bank.attachments[KEY].right)
        bank.attachments[KEY].right = NeverTrusted()
        found["stochastic per image"] = _outcome(together, setting.sample(drawn, batch=2, steps=4))
    after = setting.sample(setting.model)
    if hooks_on(setting.model):
        raise AssertionError(f"a run left {hooks_on(setting.model)} hooks on {architecture.name}")
    found["plain model after"] = RIGHT if torch.equal(after, plain) else f"wrong by {difference(after, plain):.1e}"
    return found | {"rows in one call": "yes" if all(verdicts.values()) else "no, one by one"}


def _outcome(result: Tensor, expected: Tensor) -> str:
    error = difference(result, expected)
    return RIGHT if error < TOLERANCE else f"wrong by {error:.1e}"
