"""Blends adapters in any diffusers pipeline: the network's forward pass evaluates a plan's rows and sums them."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..blending.adapters import AdapterBank
from ..blending.combine import combine
from ..blending.plans import Gates
from ..blending.side_path import SidePath
from ..blending.step_info import StepInfo
from .adapter_files import device_of
from .crosses import split_crosses, with_crosses
from .given import Adapters, check_counts, check_names, fit
from .methods import Method, Weights, make_planner, ordered_weights
from .reach import fused_parts, reach_check, with_fused
from .steps import Count, Steps, call_arguments, steps_of, timestep_of


@contextmanager
def blend(
    network: nn.Module,
    adapters: Adapters,
    weights: Weights,
    *,
    kl_scale: float = 1.0,
    method: Method = "blend",
    steps: int | Count = 1,
    images: int = 1,
    seed: int = 0,
) -> Iterator[nn.Module]:
    """Blend adapters in a diffusers network inside the block; afterwards the network is as it was.

    Every call of the network evaluates the rows of the method's plan and sums the outputs. The sum is that of the x0
    predictions, because a network's output is affine in x0 at a given latent and noise level and the coefficients sum to 1.
    So any scheduler and any prediction type will do.

    Args:
        network: ``pipe.unet`` or ``pipe.transformer``.
        adapters: see `Adapters`.
        weights: the preference. Cross adapters (``bake --method cross``) have none: their gates follow from it.
        kl_scale: distance from the base model: 0 is the base, 1 the adapters' blend.
        method: see `make_planner`.
        steps: denoising steps of each run in the block, or a function of the timestep of its first call; only ``stochastic``
            needs them.
        images: pictures made at once; only ``stochastic`` needs them. Rows of guidance come after each other: row r belongs to
            image ``r mod images``.
        seed: of the draws of ``stochastic``.

    Yields:
        The network.

    Raises:
        TypeError: adapters, weights, a KL scale or a count of another type.
        ValueError: an adapter that does not fit, or weights, a method or a KL scale that cannot be.
        RuntimeError: in the first call, none of the adapters' layers was reached.
    """
    check_counts(images=images, seed=seed, **({} if callable(steps) else {"steps": steps}))
    fitted, crosses = split_crosses(fit(network, adapters))
    planner = make_planner(method, fitted, ordered_weights(weights, [a.name for a in fitted]), kl_scale)
    planner = with_crosses(planner, fitted, crosses)
    updates, parts = [adapter.update for adapter in (*fitted, *crosses)], fused_parts(network)
    bank = AdapterBank([with_fused(update, parts) for update in updates], compute_dtype(network)).to(device_of(network))
    path, original = SidePath(bank), network.forward
    run = Steps(steps if callable(steps) else lambda _: steps)
    check_reached = reach_check(path, updates, {part: fused for part, (fused, _, _) in parts.items()})
    # Of the class: a hook of offloading replaces the instance's forward by one that takes anything.
    names = list(inspect.signature(type(network).forward).parameters)[1:]

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = dict(zip(names, args, strict=False)) | kwargs
        run.see(timestep_of(bound))
        count = _rows(bound)
        plan = planner(StepInfo(run.index, run.count, seed, range(images), pixels=None))
        outputs = []
        for row in plan.gates:
            with path.gated(_for_rows(row, count)):
                outputs.append(original(*args, **kwargs))
        check_reached()
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


def compute_dtype(network: nn.Module) -> torch.dtype:
    """The precision in which a network computes: its own where diffusers stores the weights in fewer bits (layerwise casting)."""
    own: Any = getattr(network, "dtype", None)  # of diffusers, which knows
    known = [own, *(parameter.dtype for parameter in network.parameters())]
    usable = (dtype for dtype in known if isinstance(dtype, torch.dtype) and dtype.is_floating_point)
    return next((dtype for dtype in usable if dtype.itemsize > 1), torch.float32)


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
        adapters: see `Adapters`.

    Raises:
        TypeError: adapters of another type.
        ValueError: a pipeline without such a network or with two of them, or an adapter that does not fit.
    """

    def __init__(self, pipe: Any, adapters: Adapters) -> None:
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

        Raises:
            TypeError, ValueError: see `blend`. An unknown argument that is nearly a known one is refused, too.
        """
        check_names(self.pipe, kwargs, ("weights", "kl_scale", "method", "draw_seed"))
        check_counts(draw_seed=draw_seed)
        given = call_arguments(self.pipe, args, kwargs)
        settings = {"kl_scale": kl_scale, "method": method, "seed": draw_seed}
        with blend(
            self.network, self.adapters, weights, steps=steps_of(self.pipe, given), images=_images(given), **settings
        ):
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


def _images(arguments: Mapping[str, Any]) -> int:
    """How many pictures (videos, sounds) a call of a pipeline makes at once."""
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    if isinstance(prompt, list):
        prompts = len(prompt)
    else:
        prompts = 1 if embeds is None else len(embeds)
    counts = [value for name, value in arguments.items() if re.fullmatch(r"num_\w+_per_prompt", name)]
    return prompts * math.prod(int(count or 1) for count in counts)
