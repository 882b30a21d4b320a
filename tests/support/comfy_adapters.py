"""Adapter files for the small checkpoints, and the independent truth: blends by the host's own weight patching."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import comfy_models
import torch
from safetensors.torch import save_file
from torch import Tensor

ATTENTION = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
)
CONVOLUTIONS = ("in_layers.2", "out_layers.3", "skip_connection", "op", "conv", "proj_in", "proj_out")
JOINT = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
FLUX = ("img_attn.qkv", "txt_attn.proj", "img_mlp.0", "linear1", "linear2")
LAYERS = {
    "sd3": JOINT,
    "flux": FLUX,
    "flux2": FLUX,
    "wan": ("self_attn.q", "cross_attn.k", "ffn.0", "patch_embedding"),
}
"""The layers that an adapter changes by default; `ATTENTION` for the others."""


def layers(kind: str, endings: Sequence[str]) -> dict[str, torch.Size]:
    """Return the names and weight shapes of a checkpoint's layers with one of these endings."""
    return {
        name.removesuffix(".weight"): tensor.shape
        for name, tensor in comfy_models.state_dict(kind).items()
        if name.endswith(tuple(f"{ending}.weight" for ending in endings)) and tensor.ndim > 1
    }


def low_rank(shape: torch.Size, rank: int, generator: torch.Generator, size: float = 0.4) -> tuple[Tensor, Tensor]:
    """Make factors (up, down) whose product is about ``size`` times as large as a unit-gain weight."""
    inputs = shape[1:].numel()
    down = torch.randn(rank, *shape[1:], generator=generator) / math.sqrt(inputs)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) * (size / math.sqrt(rank))
    return up, down


def kohya(
    kind: str, seed: int, rank: int = 4, endings: Sequence[str] | None = None, alpha: float | None = None
) -> dict[str, Tensor]:
    """Make a LoRA in kohya's naming over the checkpoint's own layer names. It has no alpha unless one is given."""
    endings = endings or LAYERS.get(kind, ATTENTION)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in layers(kind, endings).items():
        prefix = "lora_unet_" + name.replace(".", "_")
        tensors[f"{prefix}.lora_up.weight"], tensors[f"{prefix}.lora_down.weight"] = low_rank(shape, rank, generator)
        if alpha is not None:
            tensors[f"{prefix}.alpha"] = torch.tensor(float(alpha))
    return tensors


def write(folder: Path, name: str, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Save an adapter file; returns its path."""
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return str(path)


class Patched:
    """Copies of one checkpoint, each patched by the host itself with some adapters (or with nothing).

    Args:
        kind: one of `comfy_models`' checkpoints.
        tensors: weights to use instead of that checkpoint's.
    """

    def __init__(self, kind: str, tensors: dict[str, Tensor] | None = None) -> None:
        self.tensors = comfy_models.state_dict(kind) if tensors is None else tensors
        self._models: dict[Any, Any] = {}

    def model(self, *adapters: dict[str, Tensor]) -> Any:
        """Return a loaded copy of the MODEL in whose weights the host has patched the adapters."""
        key = tuple(map(id, adapters))
        if key not in self._models:
            model = comfy_models.load_tensors(self.tensors, dtype=torch.float32)
            for tensors in adapters:
                before = sum(map(len, model.patches.values()))
                model, _ = comfy.sd.load_lora_for_models(model, None, dict(tensors), 1.0, 0)
                assert sum(map(len, model.patches.values())) > before, "the host applied none of the adapter"
            self._models[key] = (model, adapters)  # the entry holds the adapters, because their ids are the key
        model = self._models[key][0]
        # At every call, because the host removes the patches when it unloads a model.
        comfy.model_management.load_models_gpu([model])
        return model

    def blended(
        self,
        adapters: Sequence[dict[str, Tensor]],
        coefficients: Sequence[float],
        on_top_of: Sequence[dict[str, Tensor]] = (),
        like: Any = None,
        own: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Return a MODEL that sums the copies' predictions in the host's unet wrapper: ``D_0 + sum c_i (D_i - D_0)``.

        Args:
            adapters: what to blend.
            coefficients: c, float[m].
            on_top_of: adapters that belong to the base.
            like: the MODEL whose options (attention patches, guidance, ...) are used. None takes the plain base's.
            own: puts a node with tensors of the network on each copy, whose patches are used in place of ``like``'s.
        """
        parts = [(self.model(*on_top_of, tensors), c) for tensors, c in zip(adapters, coefficients, strict=True)]
        parts.append((self.model(*on_top_of), 1 - math.fsum(coefficients)))
        if own is not None:
            parts = [(own(model), c) for model, c in parts if abs(c) > 1e-9]
            comfy.model_management.load_models_gpu([model for model, _ in parts])

        def summed(_: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
            sampling = wrapped.get_model_object("model_sampling")  # a node may have exchanged it
            randomness, total = torch.get_rng_state(), 0
            for model, c in parts:
                if abs(c) > 1e-9:
                    torch.set_rng_state(randomness)  # a node may draw numbers: the same ones for each copy
                    total = total + c * predict(model, _renamed(call, model, own is not None), sampling)
            return total

        wrapped = (like or self.model(*on_top_of)).clone()
        wrapped.set_model_unet_function_wrapper(summed)
        return wrapped


def _renamed(call: dict[str, Any], copy: Any, own: bool) -> dict[str, Any]:
    """The call with conditionings of its own for a copy, because caches between steps are kept by conditioning."""
    options = dict(call["c"]["transformer_options"])
    if "uuids" in options:
        options["uuids"] = [uuid.uuid5(name, str(id(copy))) for name in options["uuids"]]
    if own:
        options["patches"] = copy.model_options["transformer_options"].get("patches", {})
    return {**call, "c": {**call["c"], "transformer_options": options}}


def predict(model: Any, call: dict[str, Any], sampling: Any = None) -> Tensor:
    """Compute one copy's prediction for the host's call. All arguments that a model may change are copied first."""
    inputs = dict(call["c"])
    if inputs.get("control") is not None:
        inputs["control"] = {name: list(parts) for name, parts in inputs["control"].items()}
    inputs["transformer_options"] = dict(inputs["transformer_options"])
    model.model.current_patcher = model
    own = model.model.model_sampling
    model.model.model_sampling = sampling or own
    try:
        return model.model.apply_model(call["input"], call["timestep"], **inputs)
    finally:
        model.model.model_sampling = own


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def hooks_on(model: Any) -> int:
    """Count the forward hooks on a MODEL's network."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules())
