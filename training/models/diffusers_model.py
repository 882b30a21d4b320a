"""A diffusers denoiser with a LoRA adapter as the trainer's model. The base is the same network with the adapter off."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config import AUTHORS_TARGETS, AdapterConfig
from ..export import adapter_bytes
from ..policy import PolicySteps
from .gated_adapters import GatedAdapters
from .protocol import GATES, Conditioning, rows_at_once
from .schedulers import SchedulerChoice, SchedulerMaker, SchedulerRun, noise_scheduler
from .unet import call_unet, ddim_run

NetworkCall = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
AdapterWriter = Callable[..., bytes]
"""Network with its adapters, alpha, metadata; and ``adapter_name`` where there are several -> the file's content."""
StepsMaker = Callable[[Mapping[str, Any], int, float, "Iterable[int] | None"], PolicySteps]


@dataclass(frozen=True)
class Base:
    """A frozen text-to-image base, taken apart into what training needs.

    Another model family (a miniature one, say) fits by giving its own ``encode`` and ``decode``.

    Attributes:
        name: what the user called it: hub id, folder or file.
        architecture: ``sd_v1``, ``sd_v2``, ``sdxl`` or a name of one's own; goes into the adapter's metadata.
        unet: the denoiser (a UNet or a transformer), on its device and in its dtype.
        scheduler: diffusers scheduler configuration (betas, prediction type, spacing).
        latent_shape: channels, height, width of a latent; of a video channels, frames, height, width.
        resolution: width and height of an image, pixels.
        encode: prompts -> one conditioning row each, on the CPU.
        decode: clean latents float32[B, C, h, w] on the UNet's device -> images float32[B, 3, H, W] in 0..1; of videos
            [B, C, F, h, w] -> [B, N, 3, H, W].
        call: network, noisy latents, timesteps, conditioning -> the network's output.
        make_steps: scheduler, number of steps, eta, noisy steps -> the policy's coefficients.
        make_scheduler: scheduler, choice of another class, number of steps -> a run of that class.
        save: network with its adapter, alpha, metadata -> the adapter file's content.
    """

    name: str
    architecture: str
    unet: UNet2DConditionModel
    scheduler: Mapping[str, Any]
    latent_shape: tuple[int, ...]
    resolution: tuple[int, int]
    encode: Callable[[Sequence[str]], Conditioning]
    decode: Callable[[Tensor], Tensor]
    call: NetworkCall = call_unet
    make_steps: StepsMaker = ddim_run
    make_scheduler: SchedulerMaker = noise_scheduler
    save: AdapterWriter = adapter_bytes

    def policy_steps(self, steps: int, eta: float) -> PolicySteps:
        """The coefficients of a run over the base's own schedule. With eta 0 no step has noise."""
        return self.make_steps(self.scheduler, steps, eta or 1.0, None if eta else ())

    def scheduler_run(self, choice: SchedulerChoice, steps: int) -> SchedulerRun:
        """A run of a scheduler of diffusers over the base's own schedule; see `schedulers`."""
        return self.make_scheduler(self.scheduler, choice, steps)

    def decode_in_parts(self, latents: Tensor) -> Tensor:
        """Decode clean latents a few at a time: float32[B, 3, H, W] (videos [B, N, 3, H, W]) in 0..1, on their device."""
        parts = latents.split(rows_at_once(latents.shape[1:]))
        return torch.cat([self.decode(part).float() for part in parts])


class DiffusersModel:
    """A base with a trainable LoRA adapter, or several that are stacked; implements ``TextToImageModel``."""

    def __init__(
        self, base: Base, lora: AdapterConfig, seed: int, *, members: int = 1, gradient_checkpointing: bool = False
    ) -> None:
        """Freeze the base and attach fresh adapters, which change nothing until they are trained.

        Args:
            base: what to fine-tune.
            lora: the adapter's shape.
            seed: of the adapter's random down-projections (the up-projections start at 0); a further adapter takes the next.
            members: the number of adapters. Several are added up with the gates of each image, `GATES` of its conditioning.
            gradient_checkpointing: recompute the denoiser's and the decoder's activations in the backward pass: less memory,
                about a third more time.

        Raises:
            ValueError: a rank below 1, or a target that names no layer of this base.
        """
        _check_lora(base.unet, lora)
        self.base = base
        self.lora = lora
        self._unet = base.unet.requires_grad_(False).eval()
        self._adapter_enabled = True
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  (peft only divides by it)
            target_modules=_target_modules(base.unet, lora.targets),
        )
        self._members = ["default"] if members == 1 else [f"member_{i}" for i in range(members)]
        for i, name in enumerate(self._members):
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant here
                torch.manual_seed(seed + i)
                self._unet.add_adapter(config, adapter_name=name)
        self._gated = GatedAdapters(self._unet, self._members) if members > 1 else None
        cast_training_params(self._unet, dtype=torch.float32)
        # diffusers walks over all modules each time that it is asked for these, and peft each time an adapter is switched.
        self._device, self._dtype = self._unet.device, self._unet.dtype
        self._layers = [layer for layer in self._unet.modules() if isinstance(layer, BaseTunerLayer)]
        if gradient_checkpointing:
            self._unet.enable_gradient_checkpointing(self._checkpointed)
            vae = getattr(base.decode, "vae", None)
            if getattr(vae, "_supports_gradient_checkpointing", False):
                vae.enable_gradient_checkpointing()  # pyright: ignore[reportOptionalMemberAccess]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.base.latent_shape

    @property
    def device(self) -> torch.device:
        return self._device

    def policy_steps(self, steps: int, eta: float, noisy: Iterable[int] | None = None) -> PolicySteps:
        return self.base.make_steps(self.base.scheduler, steps, eta, noisy)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return self.base.encode(prompts)

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor], *, base: bool) -> Tensor:
        """Network output float32[B, C, H, W]; ``base`` switches the adapter off for this call."""
        if base:
            with self._without_adapter():
                return self._forward(latents, timesteps, conditioning)
        return self._forward(latents, timesteps, conditioning)

    def _forward(self, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        dtype = self._dtype  # masks of texts stay integers
        inputs = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in conditioning.items()
            if name != GATES
        }
        with self._gated.opened(conditioning.get(GATES)) if self._gated else nullcontext():
            return self.base.call(self._unet, latents.to(dtype), timesteps, inputs).float()

    def _checkpointed(self, function: Any, *inputs: Any) -> Any:
        """Gradient checkpointing that runs a block again with the adapters and gates as they were in the forward pass."""
        enabled, gates = self._adapter_enabled, self._gated.gates if self._gated else None

        def run(*again: Any) -> Any:
            if enabled or not self._adapter_enabled:
                with self._gated.opened(gates) if self._gated else nullcontext():
                    return function(*again)
            with self._without_adapter():
                return function(*again)

        return checkpoint(run, *inputs, use_reentrant=False)

    @contextmanager
    def _without_adapter(self) -> Iterator[None]:
        self._switch_adapter(on=False)
        try:
            yield
        finally:
            self._switch_adapter(on=True)

    def _switch_adapter(self, *, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(enabled=on)
        self._adapter_enabled = on

    def decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return self.base.decode_in_parts(latents.to(self.device)).cpu()

    def decode_differentiable(self, latents: Tensor) -> Tensor:
        return self.base.decode(latents).float()

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: value for name, value in self._unet.named_parameters() if "lora_" in name}

    def export(self, metadata: Mapping[str, str]) -> bytes:
        return self.base.save(self._unet, self.lora.alpha, metadata)

    def export_member(self, member: int, metadata: Mapping[str, str]) -> bytes:
        """One of several adapters as a file of its own, as `export`."""
        return self.base.save(self._unet, self.lora.alpha, metadata, adapter_name=self._members[member])


def _check_lora(unet: UNet2DConditionModel, lora: AdapterConfig) -> None:
    if lora.rank < 1:
        raise ValueError(f"LoRA rank {lora.rank}: it must be at least 1 (4 is the authors' value)")
    for target in lora.targets:
        if not _target_modules(unet, [target]):
            linear = {
                name.split(".")[-1] for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear)
            }
            raise ValueError(
                f"LoRA target {target!r} names no linear or convolution layer of this base; "
                f"endings of its linear layers: {', '.join(sorted(linear))}"
            )
    if not lora.targets:
        raise ValueError(f"no LoRA targets: name some, e.g. {', '.join(AUTHORS_TARGETS)}")


def _target_modules(unet: UNet2DConditionModel, targets: Sequence[str]) -> list[str]:
    """Full names of the layers whose name ends in one of the targets."""
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        and any(name == target or name.endswith("." + target) for target in targets)
    ]
