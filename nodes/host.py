"""The parts of ComfyUI's objects that this extension uses, as protocols.

The type checker compares our code with them, and ``tests/host/test_protocols.py`` compares them with the classes of every
ComfyUI version that is tested. So a version that changes one of these members is noticed before a user notices it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Network(Protocol):
    """``comfy.model_base.BaseModel``: the network with its noise schedule and its memory estimate."""

    manual_cast_dtype: torch.dtype | None
    current_patcher: Any

    def get_dtype(self) -> torch.dtype: ...

    def memory_required(self, input_shape: Sequence[int], cond_shapes: dict[str, Any] = ...) -> float: ...

    def named_modules(self, memo: Any = ..., prefix: str = ..., remove_duplicate: bool = ...) -> Any: ...


class Patcher(Protocol):
    """``comfy.model_patcher.ModelPatcher``, which graphs pass on as MODEL."""

    model: Any
    model_options: dict[str, Any]
    load_device: torch.device
    offload_device: torch.device
    patches: dict[str, list[Any]]
    patches_uuid: Any
    backup: dict[str, Any]
    object_patches: dict[str, Any]
    object_patches_backup: dict[str, Any]
    hook_backup: dict[str, Any]
    hook_patches: dict[Any, dict[str, list[Any]]]

    def clone(self) -> Any: ...

    def get_wrappers(self, wrapper_type: str, key: str) -> list[Any]: ...

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Any) -> None: ...

    def set_additional_models(self, key: str, models: list[Any]) -> None: ...


class Executor(Protocol):
    """``comfy.patcher_extension.WrapperExecutor``: the next wrapper, or the wrapped function itself."""

    class_obj: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class Sampler(Protocol):
    """``comfy.samplers.KSAMPLER``: a sampler object around a function."""

    sampler_function: Any
    extra_options: dict[str, Any]


class Denoiser(Protocol):
    """``comfy.samplers.KSamplerX0Inpaint``: what a sampler function calls, ``(x, sigma) -> x0`` after guidance."""

    inner_model: Any

    def __call__(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor: ...
