"""Fits one LoRA to a blend in the host: runs of the blend are recorded, and their network calls are repeated with gradient."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...blending.distillation import Example, FitSettings, Fitted, Goal, fit, held_out_error
from ...blending.gated_updates import GatedUpdates, trainable
from ...blending.plans import Blend
from ...blending.updates import LowRank
from ..adapters.baking import Baked
from ..adapters.files import RewardLoRAs
from ..host import Executor, Patcher
from .attach import attach
from .custom_sampling import sample_with
from .fused_layers import layers_called

RECORDER = "diffusion_blend_recorder"
SAMPLER, SCHEDULER = "euler_ancestral", "normal"
"""Of the recorded runs: those of Blended KSampler's defaults."""

HELD_OUT_SEED = 1_000_000
"""Distance of the held-out runs' seeds from the others."""

GRADIENT_MEMORY = 4
"""Memory of a call with gradient, as a multiple of one without, in the request to the host."""


@dataclass(frozen=True)
class DistilSettings:
    """The runs to be recorded, and the fit.

    Args:
        positive, negative: the host's conditionings.
        latent_image: an empty latent of the wanted size.
        steps: denoising steps of a run.
        cfg: its guidance.
        trajectories: runs to fit to; a quarter as many more are held out, with other noise.
        iterations: optimizer steps.
        learning_rate: of Adam at the beginning.
        seed: of the noise and of the order of the calls, below 2^64.
    """

    positive: Any
    negative: Any
    latent_image: dict[str, Any]
    steps: int
    cfg: float
    trajectories: int
    iterations: int
    learning_rate: float
    seed: int

    @property
    def runs(self) -> int:
        """The number of runs, those that are held out among them."""
        return self.trajectories + max(self.trajectories // 4, 1)

    @property
    def schedule(self) -> FitSettings:
        """The settings of the fit."""
        return FitSettings(self.iterations, learning_rate=self.learning_rate, seed=self.seed % 2**63)


@dataclass
class HostCall:
    """One call of the host's network: its arguments on the CPU, outside of inference mode, and the blend's x0 prediction."""

    network: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    device: torch.device

    def predict(self) -> Tensor:
        """Call the network again."""
        return self.network._apply_model(*_moved(self.args, self.device), **_moved(self.kwargs, self.device))

    def example(self) -> Example:
        """The call to fit to. Differences of x0 over sigma are those of the noise or the velocity."""
        return Example(self.predict, (self.output,), None, 1.0 / float(self.args[1].max()))


@dataclass
class CallRecorder:
    """APPLY_MODEL wrapper outside of the blend's own: keeps what each call got and what the blend made of it."""

    calls: list[HostCall] = field(default_factory=list)

    def __call__(self, executor: Executor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.inference_mode(False):
            given = _copied(args), _copied(kwargs)
        output = executor(*args, **kwargs)
        with torch.inference_mode(False):
            kept = output.to("cpu", torch.float32, copy=True)
        self.calls.append(HostCall(executor.class_obj, *given, kept, output.device))
        return output


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("cpu", copy=True)
    return _mapped(value, _copied)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else _mapped(value, partial(_moved, device=device))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Plain containers with their parts changed. Everything else, such as other nodes' patches, is shared."""
    if type(value) is dict:
        return {name: part if name == "wrappers" else change(part) for name, part in value.items()}
    return type(value)(change(part) for part in value) if type(value) in (list, tuple) else value


@contextmanager
def normal_tensors(network: nn.Module) -> Iterator[None]:
    """Exchange parameters that were made in inference mode for others of the same memory, which a gradient may pass.

    Raises:
        ValueError: a parameter is of a kind without plain memory, as quantised ones are.
    """
    exchanged: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in network.modules():
            owners: Any = (module._parameters, module._buffers)
            for owner in owners:
                for name, tensor in owner.items():
                    if tensor is not None and tensor.is_inference():
                        exchanged.append((owner, name, tensor))
                        owner[name] = _alias(tensor)  # the same keys, so the walk goes on
        yield
    finally:
        for owner, name, tensor in exchanged:
            owner[name] = tensor


def _alias(tensor: Any) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise ValueError(
            f"The MODEL's weights are of the kind {type(tensor).__name__}, which gives no gradient: load the model in float32, "
            "float16 or bfloat16 to distil."
        )
    memory = tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(*memory)


def distil(
    model: Patcher,
    loras: RewardLoRAs,
    coefficients: Sequence[float],
    baked: Baked,
    settings: DistilSettings,
    advance: Callable[[int, int], None],
) -> tuple[float, Fitted]:
    """Fit the pairs of a soup to the blend. They are changed in ``baked``.

    Args:
        model: the host's ModelPatcher.
        loras: the adapters.
        coefficients: c, float[m].
        baked: of `sum_updates`.
        settings: see `DistilSettings`.
        advance: called with the finished steps and their number. It may raise to stop.

    Returns:
        The error of the exact soup, and the fit.

    Raises:
        ValueError: the blend has no effect, or the adapters or the model give no gradient.
    """
    total = settings.runs + settings.iterations
    runs = record(model, loras, [coefficients], settings, lambda done: advance(done, total))
    network: Any = model.model
    calls = [call for held_out, call in runs if not held_out]
    load_with_gradient(model, calls[0])
    with torch.inference_mode(False), normal_tensors(network):
        examples = [call.example() for call in calls]
        checked = [_with_base(call) for held_out, call in runs if held_out]
        soup = GatedUpdates(network, [updates for _, updates in baked.whole])
        goal = Goal(gates=tuple(c for c, _ in baked.whole))
        with layers_called({id(module) for module in soup.modules}), soup.installed():
            exact = held_out_error(soup, checked, [goal])
        device = calls[0].device
        start = {name: LowRank(pair.down.to(device), pair.up.to(device)) for name, (_, pair) in baked.pairs.items()}
        updates, factors = trainable(start)
        for name, fixed in baked.fixed.items():
            updates.setdefault(name, []).extend(fixed)
        gated = GatedUpdates(network, [updates])
        with layers_called({id(module) for module in gated.modules}):
            done = total - settings.iterations

            def report(number: int, _: float | None) -> None:
                advance(done + number, total)

            fitted = fit(gated, factors, examples, checked, lambda _: Goal(), [Goal()], settings.schedule, report)
        for name, (key, _) in baked.pairs.items():
            pair: Any = updates[name][0]
            baked.pairs[name] = (key, LowRank(pair.down.detach().cpu(), pair.up.detach().cpu()))
    return exact, fitted


def load_with_gradient(model: Patcher, call: HostCall) -> None:
    """Let the host load a model with the memory that a call with gradient takes."""
    memory = model.model.memory_required(list(call.args[0].shape)) * GRADIENT_MEMORY
    comfy.model_management.load_models_gpu([model], memory_required=memory)


def record(
    model: Patcher,
    loras: RewardLoRAs,
    pool: Sequence[Sequence[float]],
    settings: DistilSettings,
    advance: Callable[[int], None],
) -> list[tuple[bool, HostCall]]:
    """Run blends from several noises.

    Args:
        model: the host's ModelPatcher.
        loras: the adapters.
        pool: coefficients of blends, which the runs take in turn.
        settings: of the runs.
        advance: called with the number of finished runs.

    Returns:
        Each call with whether it is held out.
    """
    found: list[tuple[bool, HostCall]] = []
    for number in range(settings.runs):
        held_out = number >= settings.trajectories
        place = number - settings.trajectories if held_out else number
        own = place + HELD_OUT_SEED if held_out else place
        planner = Blend(tuple(pool[place % len(pool)]))
        recorder, blended = CallRecorder(), attach(model, loras, planner, "sequential")
        blended.add_wrapper_with_key(WrappersMP.APPLY_MODEL, RECORDER, recorder)
        sample_with(
            comfy.samplers.sampler_object(SAMPLER),
            SAMPLER,
            blended,
            positive=settings.positive,
            negative=settings.negative,
            latent_image=settings.latent_image,
            steps=settings.steps,
            cfg=settings.cfg,
            scheduler=SCHEDULER,
            denoise=1.0,
            seed=(settings.seed + own) % 2**64,
        )
        found += [(held_out, call) for call in recorder.calls]
        advance(number + 1)
    return found


def _with_base(call: HostCall) -> Example:
    given = call.example()
    with torch.no_grad():
        return Example(given.predict, given.predictions, call.predict().float().cpu(), given.scale)


def settings_in_header(settings: DistilSettings) -> dict[str, Any]:
    """The settings that the header of a fitted file says."""
    names = ("steps", "cfg", "trajectories", "iterations", "learning_rate", "seed")
    return {name: getattr(settings, name) for name in names}


def fit_report(soup: float, fitted: Fitted) -> str:
    """What a fit has done, in words for the artist."""
    errors = f"Distance to the blend, as a share of its effect: soup {soup:.3f}, "
    if fitted.start > soup * 1.001:
        errors += f"soup of this rank {fitted.start:.3f}, "
    if fitted.improved:
        return f"{errors}this file {fitted.error:.3f}."
    return f"{errors}and the fit did not come nearer, so the file holds the soup. Try more iterations or another learning_rate."


def distilled_metadata(header: dict[str, str], settings: DistilSettings, soup: float, fitted: Fitted) -> dict[str, str]:
    """The header of a baked file with what the fit was made of, and the errors."""
    made: dict[str, Any] = json.loads(header["diffusion_blend.baked"])
    errors = {"error": fitted.error, "soup_error": soup, "soup_error_at_this_rank": fitted.start}
    made |= {"method": "distil", **{name: round(error, 6) for name, error in errors.items()}}
    made["curve"] = [(number, round(error, 6)) for number, error in fitted.curve]
    made |= settings_in_header(settings)
    return header | {"diffusion_blend.baked": json.dumps(made)}
