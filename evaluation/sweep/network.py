"""A base's guided predictions through rows of gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...blending.adapters import AdapterBank
from ...blending.plans import Gates
from ...blending.side_path import SidePath
from ...pipelines.adapter_files import Updates
from ...training.models.diffusers_model import Base
from ...training.models.protocol import Conditioning, join
from ...training.policy import guide


class Network:
    """A frozen base to which adapters can be attached by the side path.

    Args:
        base: the model.
        guidance_scale: classifier-free guidance; at 1 the empty prompt is not evaluated.
        compile_base: run the network through torch.compile while no adapter is attached. The hooks of adapters change from
            call to call, so calls with adapters are not compiled.
    """

    def __init__(self, base: Base, guidance_scale: float, *, compile_base: bool = False) -> None:
        self.base, self.guidance_scale = base, guidance_scale
        self._unet = base.unet.requires_grad_(False).eval()
        self._path: SidePath | None = None
        self._plain = torch.compile(self._unet) if compile_base else self._unet
        self._called: Any = self._unet
        self._bank: tuple[Sequence[Updates], AdapterBank] | None = None

    @cached_property
    def device(self) -> torch.device:
        """Where the network computes. diffusers walks over all modules to find it."""
        return self._unet.device

    @cached_property
    def _dtype(self) -> torch.dtype:
        return self._unet.dtype

    @cached_property
    def _modules(self) -> dict[str, torch.nn.Module]:
        return dict(self._unet.named_modules(remove_duplicate=False))

    def _stacked(self, adapters: Sequence[Updates]) -> AdapterBank:
        """The adapters' factors, stacked. The last bank is cached, because most units of work have the adapters of the last."""
        if self._bank is None or not _same(self._bank[0], adapters):
            with torch.inference_mode(False):  # a later unit may take gradients
                self._bank = (list(adapters), AdapterBank(adapters, self._dtype).to(self.device))
        return self._bank[1]

    @contextmanager
    def adapted(self, adapters: Sequence[Updates]) -> Iterator[None]:
        """Attach adapters for the block; a row of gates has one gate for each of them, in this order."""
        self._path = SidePath(self._stacked(adapters))
        self._path.install(self._unet, self._modules)
        self._called = self._unet if any(adapters) else self._plain
        try:
            yield
        finally:
            self._path.remove()
            self._path = None

    def inputs(self, conditioning: Conditioning) -> dict[str, Tensor]:
        """The keyword tensors of both guidance branches, empty prompts first, on the device, made once a chunk."""
        prompt, empty = conditioning.prompt, conditioning.empty
        both = {name: rows if self.guidance_scale == 1 else join([empty[name], rows]) for name, rows in prompt.items()}
        dtype = self._dtype  # masks of texts stay integers
        return {
            name: rows.to(self.device, dtype if rows.is_floating_point() else rows.dtype) for name, rows in both.items()
        }

    def output(self, row: tuple[Gates, ...], latents: Tensor, timestep: float, inputs: dict[str, Tensor]) -> Tensor:
        """Guided network output.

        Args:
            row: one image's gates for the whole batch, or the gates of every image.
            latents: noisy latents, float32[B, C, H, W].
            timestep: of all of them: an integer of a noise schedule, or 1000 times the time of a flow.
            inputs: see `inputs`, for these B images.

        Returns:
            float32[B, C, H, W].
        """
        guided = self.guidance_scale != 1
        rows = torch.cat([latents, latents]) if guided else latents
        gates = row * 2 if guided and len(row) > 1 else row  # both branches of an image share its gates
        assert self._path is not None
        with self._path.gated(gates):
            times = torch.full((len(rows),), timestep, device=rows.device)
            output = self.base.call(self._called, rows.to(self._dtype), times, inputs).float()
        if not guided:
            return output
        unconditional, conditional = output.chunk(2)
        return guide(conditional, unconditional, self.guidance_scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode clean latents, a few at a time: float32[B, 3, H, W] in 0..1, on the device."""
        return self.base.decode_in_parts(latents)


def _same(known: Sequence[Updates], adapters: Sequence[Updates]) -> bool:
    return len(known) == len(adapters) and all(one is other for one, other in zip(known, adapters, strict=True))
