"""Trajectories of a blend in a diffusers pipeline, as network calls that can be repeated."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .adapter_files import Adapter
from .blended import blend, denoiser

HELD_OUT_SEED = 1_000_000
"""The first seed of held-out trajectories: others than those that are fitted to."""


@dataclass(frozen=True)
class Settings:
    """Which trajectories are made, and how an adapter is fitted to them.

    Args:
        prompts: texts; trajectory i has prompt ``i mod len(prompts)``.
        steps: denoising steps of a trajectory.
        trajectories: runs of the blend to fit to. A quarter as many more are held out, with the same prompts and other noise.
        iterations: optimizer steps.
        batch: calls of the network for each optimizer step.
        learning_rate: of Adam at the beginning.
        seed: of the noise and of the order of the calls.
        guidance: classifier-free guidance; None is the pipeline's own.
        height, width: of the pictures, in pixels; None is the pipeline's own.
        device: such as ``cuda``; "auto" is a GPU if there is one.
        precision: of the base: float32, float16 or bfloat16.
        eta: noise of the steps of pipelines that take it, with DDIM 0 (none) to 1; None is the pipeline's own.
    """

    prompts: Sequence[str]
    steps: int = 20
    trajectories: int = 16
    iterations: int = 400
    batch: int = 4
    learning_rate: float = 3e-4
    seed: int = 0
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    device: str = "auto"
    precision: str = "float32"
    eta: float | None = None

    @property
    def held_out(self) -> int:
        """The number of held-out trajectories."""
        return max(self.trajectories // 4, 1)


@dataclass(frozen=True)
class Call:
    """One call of a network: its arguments, and the sample that it returned, on the CPU."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    def predict(self, network: nn.Module, device: torch.device) -> Tensor:
        """Call the network again with the same arguments."""
        return sample_of(network(*_moved(self.args, device), **_moved(self.kwargs, device)))


def sample_of(output: Any) -> Tensor:
    """The sample of a network's output: a tuple's or an object's first part, or a list of pictures of one size."""
    first = output[0]
    return torch.stack(list(first)) if isinstance(first, list) else first


@dataclass
class Recorder:
    """A forward hook that keeps a network's calls. Tensors that come again, such as the prompt's, are kept once."""

    calls: list[Call] = field(default_factory=list)
    _kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.calls.append(Call(self._copied(args), self._copied(kwargs), sample_of(output).detach().to("cpu").clone()))

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            kept = self._kept.get(id(value))
            if kept is None or kept[0] is not value or not torch.equal(kept[1], value.cpu()):
                # The original is held, too, so that no other tensor gets its id.
                kept = self._kept[id(value)] = (value, value.detach().to("cpu").clone())
            return kept[1]
        return _mapped(value, self._copied)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else _mapped(value, lambda part: _moved(part, device))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: change(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(change, value))
    return value


def usable_device(name: str) -> torch.device:
    """A device that this machine has.

    Raises:
        ValueError: it has none of this name.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}): give cpu, cuda or auto") from error
    return device


def load_pipeline(base: str, settings: Settings) -> Any:
    """Load a diffusers folder for a fit: whole, frozen, with checkpointing of activations where the network has it.

    Raises:
        ValueError: the folder cannot be loaded, or its pipeline does not take the eta of the settings.
    """
    from diffusers import DiffusionPipeline

    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = usable_device(automatic if settings.device == "auto" else settings.device)
    try:
        pipe: Any = DiffusionPipeline.from_pretrained(
            base,
            torch_dtype=getattr(torch, settings.precision),
            local_files_only=True,
            use_safetensors=True,
            **_left_out(Path(base)),
        )
        pipe = pipe.to(device)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"base {base!r} cannot be loaded: {error}") from error
    if settings.eta is not None and "eta" not in inspect.signature(pipe.__call__).parameters:
        raise ValueError(f"eta is {settings.eta:g}, and {type(pipe).__name__} takes none: leave it out")
    pipe.set_progress_bar_config(disable=True)
    network = denoiser(pipe).requires_grad_(False)
    if device.type != "cpu" and getattr(network, "_supports_gradient_checkpointing", False):
        network.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
    return pipe


def _left_out(folder: Path) -> dict[str, None]:
    """The parts that a folder lists without a class, and the checker. This package's own classes are imported for diffusers."""
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    for library, _ in parts.values():
        if str(library).startswith("diffusion_blend."):
            importlib.import_module(library)
    return {name: None for name, entry in parts.items() if entry[0] is None or name == "safety_checker"}


def record(
    pipe: Any, adapters: Sequence[Adapter], preferences: Sequence[tuple[Sequence[float], float]], settings: Settings
) -> Iterator[tuple[bool, list[Call]]]:
    """Run the blend, and yield every trajectory's calls: those to fit to, then those that are held out.

    Args:
        pipe: of diffusers, with the prompt as text.
        adapters: fitted to the pipeline's network.
        preferences: weights and KL scale; trajectories take them in turn.
        settings: see `Settings`.

    Yields:
        Whether the trajectory is held out, and its calls.
    """
    chosen = {
        "guidance_scale": settings.guidance,
        "height": settings.height,
        "width": settings.width,
        "eta": settings.eta,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    network = denoiser(pipe)
    for number in range(settings.trajectories + settings.held_out):
        held_out = number >= settings.trajectories
        own = number - settings.trajectories if held_out else number
        weights, kl_scale = preferences[own % len(preferences)]
        generator = torch.Generator().manual_seed(settings.seed + own + (HELD_OUT_SEED if held_out else 0))
        with _recorded(network) as calls, blend(network, adapters, weights, kl_scale=kl_scale):
            pipe(
                settings.prompts[own % len(settings.prompts)],
                num_inference_steps=settings.steps,
                generator=generator,
                output_type="latent",
                **given,
            )
        yield held_out, calls


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[Call]]:
    recorder = Recorder()
    handle = network.register_forward_hook(recorder, with_kwargs=True)
    try:
        yield recorder.calls
    finally:
        handle.remove()
