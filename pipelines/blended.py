"""Blends adapters in any diffusers pipeline: the network's forward pass evaluates a plan's rows and sums them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..blending.adapters import AdapterBank
from ..blending.combine import combine
from ..blending.groups import is_stacked_group, missing_members, stacking_refusal
from ..blending.plans import Blend, Gates, Planner, Soup, Stochastic
from ..blending.preference import Preference
from ..blending.side_path import SidePath
from ..blending.step_info import StepInfo
from .adapter_files import Adapter, device_of, read_adapter
from .crosses import split_crosses, with_crosses

logger = logging.getLogger("diffusion_blend")

Method = Literal["blend", "stochastic", "soup", "stacked"]

Weights = Sequence[float] | Mapping[str, float]
"""One weight per adapter, in order or by name; adapters that are not named have weight 0."""


def make_planner(method: str, adapters: Sequence[Adapter], weights: Sequence[float], kl_scale: float) -> Planner:
    """The planner of a method.

    Args:
        method: ``blend`` sums predictions; ``stochastic`` draws an adapter for each image and step; ``soup`` averages the
            weight updates; ``stacked`` adds every update times its weight as it is, as diffusers' ``set_adapters`` does, which
            is all that adapters need that were trained to be stacked.
        adapters: in order.
        weights: one per adapter, divided by their sum except for ``stacked``.
        kl_scale: 0 is the base, 1 the adapters.

    Raises:
        ValueError: an unknown method, or weights or a KL scale that it cannot have.
    """
    _note_group(method, adapters)
    if method == "stacked":
        return Soup(tuple(kl_scale * weight for weight in Preference(tuple(weights)).weights))
    planners: dict[str, Callable[[Gates], Planner]] = {"blend": Blend, "stochastic": Stochastic, "soup": Soup}
    if method not in planners:
        raise ValueError(f"method is {method!r}: choose from {', '.join([*planners, 'stacked'])}")
    names = [adapter.name for adapter in adapters]
    known = [adapter.kl_weight for adapter in adapters]
    coefficients = Preference(tuple(weights), kl_scale).coefficients(names, known)
    return planners[method](tuple(float(c) for c in coefficients))


def _note_group(method: str, adapters: Sequence[Adapter]) -> None:
    """Say how a method fits adapters that were trained to be stacked."""
    groups, names = [adapter.group for adapter in adapters], [adapter.name for adapter in adapters]
    if method == "stacked" and any(groups):
        refusal = stacking_refusal(groups, names)
        missing = [] if refusal else missing_members(groups)
        if refusal:
            logger.warning("%s: stacked, they are no model of the mixed reward", refusal)
        if missing:
            logger.warning("the group has more adapters, which count as weight 0: %s", ", ".join(missing))
    elif method in ("blend", "stochastic") and len(adapters) > 1 and is_stacked_group(groups):
        logger.info("%s were trained to be stacked: method='stacked' needs one call a step", ", ".join(names))


@dataclass
class _Steps:
    """Follows the denoising step by the timesteps of the network's calls.

    Attributes:
        count: steps of the run.
        index: of the present step; -1 before the first call.
    """

    count: int
    index: int = -1
    _last: float | None = field(default=None, repr=False)

    def see(self, timestep: float) -> None:
        """Count a step when the timestep changes."""
        if timestep != self._last:
            self.index, self._last = self.index + 1, timestep


@contextmanager
def blend(
    network: nn.Module,
    adapters: Mapping[str, Any] | Sequence[Adapter],
    weights: Weights,
    *,
    kl_scale: float = 1.0,
    method: Method = "blend",
    steps: int = 1,
    images: int = 1,
    seed: int = 0,
) -> Iterator[nn.Module]:
    """Blend adapters in a diffusers network inside the block; afterwards the network is as it was.

    Every call of the network evaluates the rows of the method's plan and sums the outputs. The sum is that of the x0
    predictions, because a network's output is affine in x0 at a given latent and noise level and the coefficients sum to 1.
    So any scheduler and any prediction type will do.

    Args:
        network: ``pipe.unet`` or ``pipe.transformer``.
        adapters: name -> file, folder, tensors or peft model; see `adapter_files.open_adapter`. Or adapters that are fitted.
        weights: the preference. Cross adapters (``bake --method cross``) have none: their gates follow from it.
        kl_scale: distance from the base model: 0 is the base, 1 the adapters' blend.
        method: see `make_planner`.
        steps: denoising steps of the run; only ``stochastic`` needs them.
        images: pictures made at once; only ``stochastic`` needs them. Rows of guidance come after each other: row r belongs to
            image ``r mod images``.
        seed: of the draws of ``stochastic``.

    Yields:
        The network.

    Raises:
        ValueError: an adapter that does not fit, or weights, a method or a KL scale that cannot be.
    """
    fitted, crosses = split_crosses(fit(network, adapters))
    planner = make_planner(method, fitted, ordered_weights(weights, [a.name for a in fitted]), kl_scale)
    planner = with_crosses(planner, fitted, crosses)
    updates = [adapter.update for adapter in (*fitted, *crosses)]
    bank = AdapterBank(updates, next(network.parameters()).dtype).to(device_of(network))
    path, run, original = SidePath(bank), _Steps(steps), network.forward
    # Of the class: a hook of offloading replaces the instance's forward by one that takes anything.
    names = list(inspect.signature(type(network).forward).parameters)[1:]

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = dict(zip(names, args, strict=False)) | kwargs
        run.see(float(torch.as_tensor(bound["timestep" if "timestep" in bound else "t"]).flatten()[0]))
        count = _rows(bound)
        plan = planner(StepInfo(run.index, max(run.count, run.index + 1), seed, range(images), pixels=None))
        outputs = []
        for row in plan.gates:
            with path.gated(_for_rows(row, count)):
                outputs.append(original(*args, **kwargs))
        return _summed(outputs, [float(c) for c in plan.mix])

    path.install(network)
    network.forward = forward
    try:
        yield network
    finally:
        del network.forward  # the class's own shows again
        if network.forward != original:  # another hook, of offloading for instance, had replaced it before
            network.forward = original
        path.remove()


def fit(network: nn.Module, adapters: Mapping[str, Any] | Sequence[Adapter]) -> list[Adapter]:
    """Read adapters and fit them to a network; fitted ones are returned as they are."""
    if isinstance(adapters, Mapping):
        return [read_adapter(name, source, network) for name, source in adapters.items()]
    return list(adapters)


def ordered_weights(weights: Weights, names: Sequence[str]) -> list[float]:
    """Weights in the order of the adapters.

    Raises:
        ValueError: a name that no adapter has, or a number of weights that differs from the number of adapters.
    """
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise ValueError(f"weights name {unknown[0]!r}, which is none of the adapters {list(names)}")
        return [float(weights.get(name, 0.0)) for name in names]
    if len(weights) != len(names):
        raise ValueError(f"{len(weights)} weights for {len(names)} adapters ({', '.join(names)}): give one per adapter")
    return [float(weight) for weight in weights]


def _rows(bound: Mapping[str, Any]) -> int:
    """The number of pictures of a call: they are one tensor, or a list of tensors as Z-Image's."""
    return len(
        next(
            value
            for value in bound.values()
            if (isinstance(value, Tensor) and value.ndim > 2)
            or (isinstance(value, list) and isinstance(value[0], Tensor))
        )
    )


def _for_rows(row: tuple[Gates, ...], count: int) -> tuple[Gates, ...]:
    """The gates of every row of a call: row r belongs to image ``r mod images``."""
    if len(row) == 1:
        return row
    if count % len(row):
        raise ValueError(
            f"a call has {count} rows for {len(row)} images: give the number of pictures that are made at once as images"
        )
    return tuple(row[r % len(row)] for r in range(count))


def _summed(outputs: Sequence[Any], mix: Sequence[float]) -> Any:
    """The weighted sum of the networks' outputs in float32, in the form and dtype of the first."""
    if len(outputs) == 1 and mix[0] == 1:
        return outputs[0]
    parts = [output[0] for output in outputs]
    if isinstance(parts[0], list):
        total: Any = [_sum_of(rows, mix) for rows in zip(*parts, strict=True)]
    else:
        total = _sum_of(parts, mix)
    if isinstance(outputs[0], tuple):
        return (total, *outputs[0][1:])
    return type(outputs[0])(sample=total)


def _sum_of(tensors: Sequence[Tensor], mix: Sequence[float]) -> Tensor:
    return combine((tensor.float() for tensor in tensors), mix).to(tensors[0].dtype)


class BlendedPipeline:
    """A diffusers pipeline whose pictures blend several adapters.

    ::

        blended = BlendedPipeline(pipe, {"aesthetic": "aesthetic.safetensors", "text": "text.safetensors"})
        picture = blended("a red car", weights=[0.3, 0.7], kl_scale=1.0).images[0]

    The pipeline itself is not changed between calls. LoRAs that are loaded in it belong to the base.

    Args:
        pipe: a pipeline with a UNet or a transformer: Stable Diffusion 1.x, 2.x, XL and 3, Flux, Qwen-Image, Z-Image and others.
        adapters: name -> file, folder, tensors or peft model; see `adapter_files.open_adapter`.

    Raises:
        ValueError: a pipeline without such a network or with two of them, or an adapter that does not fit.
    """

    def __init__(self, pipe: Any, adapters: Mapping[str, Any]) -> None:
        self.pipe, self.network = pipe, denoiser(pipe)
        self.adapters = fit(self.network, adapters)

    def __call__(
        self,
        *args: Any,
        weights: Weights,
        kl_scale: float = 1.0,
        method: Method = "blend",
        draw_seed: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Make pictures.

        Args:
            args: as for the pipeline.
            weights: the preference, in the adapters' order or by name.
            kl_scale: distance from the base model: 0 is the base, 1 the blend.
            method: see `make_planner`.
            draw_seed: of the draws of ``stochastic``.
            kwargs: as for the pipeline.

        Returns:
            The pipeline's own result.
        """
        bound = inspect.signature(self.pipe.__call__).bind_partial(*args, **kwargs).arguments
        steps = int(bound.get("num_inference_steps") or _default_steps(self.pipe))
        settings = {"kl_scale": kl_scale, "method": method, "seed": draw_seed}
        with blend(self.network, self.adapters, weights, steps=steps, images=_images(bound), **settings):
            return self.pipe(*args, **kwargs)


def denoiser(pipe: Any) -> nn.Module:
    """The network of a pipeline that adapters change.

    Raises:
        ValueError: there is none, or there are two.
    """
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError(f"{type(pipe).__name__} has two transformers, which cannot be blended yet")
    for name in ("unet", "transformer"):
        network = getattr(pipe, name, None)
        if isinstance(network, nn.Module):
            return network
    raise ValueError(f"{type(pipe).__name__} has neither a unet nor a transformer, so nothing to blend")


def _default_steps(pipe: Any) -> int:
    return int(inspect.signature(pipe.__call__).parameters["num_inference_steps"].default)


def _images(bound: Mapping[str, Any]) -> int:
    """How many pictures a call of a pipeline makes at once."""
    prompt, embeds = bound.get("prompt"), bound.get("prompt_embeds")
    if isinstance(prompt, list):
        prompts = len(prompt)
    else:
        prompts = 1 if embeds is None else len(embeds)
    return prompts * int(bound.get("num_images_per_prompt") or 1)
