"""One adapter that reads the preference: a prompt may end in ``@ softness:.5,warmth:.5``, and the adapter sees a bias.

This is the way of ParetoSlider (arXiv 2604.20816): a model conditioned on the preference. The bias of a layer is
``b = sum_i w_i e_i`` with a fixed direction ``e_i`` for each reward, of the width of the layer's input. In every adapted layer
the update reads ``x + b`` in place of an input x (at every pixel or token), and the base's own weights read x:

    y = W x + B A (x + b)

So an untrained adapter is the base, and ``B A b`` is a learned bias of each layer that depends on the preference. In as many
iterations as a stacked group has, such an adapter leaves the base and still hardly reads the preference (docs/miniature.md).
Three other ways were not learned either: an added token, which is one of 25 and at which nothing looks at first; a bias of the
text that the base's weights read, too, and that only disturbs at first; and a bias of the text that only the updates of the
cross-attention's keys and values read. ComfyUI knows no such bias: the adapter is for comparisons in this world only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

from .adapters import ADAPTER, Mixture, read_mixture
from .reward_names import REWARD_NAMES

if TYPE_CHECKING:
    from ..training.models.diffusers_model import Base
    from ..training.models.protocol import Conditioning

SEPARATOR = " @ "
_WEIGHTS = "preference"  # their name among the rows of the conditioning
_SEED = 20260420  # of the directions


def with_preference(prompt: str, weights: Mapping[str, float]) -> str:
    """The prompt of a picture with a preference; rewards of weight 0 are left out."""
    shares = ",".join(f"{name}:{share:.6f}" for name, share in weights.items() if round(share, 6) > 0)
    return f"{prompt}{SEPARATOR}{shares}"


def split_preference(text: str) -> tuple[str, Mixture]:
    """The prompt and its preference; an empty one where the text has none."""
    prompt, separator, shares = text.partition(SEPARATOR)
    return prompt, read_mixture(shares) if separator else {}


@cache
def directions(width: int) -> Tensor:
    """The bias of each reward alone, for a layer whose input has this width.

    Args:
        width: channels of the input, at least the number of rewards.

    Returns:
        float32[rewards, width]: orthogonal rows with a mean square of 1.
    """
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randn((width, len(REWARD_NAMES)), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.float() * width**0.5


def base() -> Base:
    """The shipped miniature as a base whose prompts may have a preference.

    Raises:
        ValueError: see `base.shipped`. Encoding refuses prompts of which only some have a preference.
    """
    from ..training.models.unet import call_unet
    from .base import shipped

    plain = shipped()

    def encode(texts: Sequence[str]) -> Conditioning:
        return _encode(plain, texts)

    def call(network: Any, latents: Tensor, timesteps: Tensor, conditioning: Mapping[str, Tensor]) -> Tensor:
        given = {name: rows for name, rows in conditioning.items() if name != _WEIGHTS}
        if _WEIGHTS not in conditioning or _adapter_is_off(network):
            return call_unet(network, latents, timesteps, given)
        with _updates_read(network, conditioning[_WEIGHTS]):
            return call_unet(network, latents, timesteps, given)

    return replace(plain, encode=encode, call=call)


def mixture(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """``r(w) = sum_i w_i r_i`` with each prompt's own preference, in the rewards' differentiable forms.

    Args:
        images: float[B, 3, H, W] in 0..1.
        prompts: B prompts with a preference.

    Returns:
        float[B].

    Raises:
        ValueError: a prompt without a preference.
    """
    from .rewards import DIFFERENTIABLE, REWARDS

    parts = [split_preference(text) for text in prompts]
    if not all(weights for _, weights in parts):
        raise ValueError(f"a prompt without a preference: write {with_preference('a red circle', {'softness': 1.0})!r}")
    texts = [prompt for prompt, _ in parts]
    total = torch.zeros(len(images), dtype=images.dtype, device=images.device)
    for name in {name: None for _, weights in parts for name in weights}:
        shares = torch.tensor(
            [weights.get(name, 0.0) for _, weights in parts], dtype=images.dtype, device=images.device
        )
        total = total + shares * DIFFERENTIABLE.get(name, REWARDS[name])(images, texts)
    return total


def training_prompts(prompts: Sequence[str], rewards: Sequence[str], count: int, seed: int) -> list[str]:
    """Prompts with drawn preferences (`training.stacking.draw_preference`), the prompts in turn.

    Args:
        prompts: without preferences.
        rewards: names, at least two.
        count: lines.
        seed: of the preferences; each is a function of the seed and its place alone.
    """
    from ..training.randomness import keyed_generator
    from ..training.stacking import draw_preference

    lines = []
    for number in range(count):
        drawn = draw_preference(len(rewards), keyed_generator(seed, "preference", number)).tolist()
        lines.append(with_preference(prompts[number % len(prompts)], dict(zip(rewards, drawn, strict=True))))
    return lines


def write_prompts(source: Path, file: Path, rewards: Sequence[str], count: int, seed: int) -> None:
    """Write `training_prompts` of a file of prompts, one a line."""
    prompts = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(training_prompts(prompts, rewards, count, seed)) + "\n", encoding="utf-8")


def _encode(plain: Base, texts: Sequence[str]) -> Conditioning:
    parts = [split_preference(text) for text in texts]
    encoded = plain.encode([prompt for prompt, _ in parts])
    if not any(weights for _, weights in parts):
        return encoded
    if not all(weights for _, weights in parts):
        raise ValueError("some prompts have a preference and some have none: give all of them one, or none")
    shares = torch.tensor([[weights.get(name, 0.0) for name in REWARD_NAMES] for _, weights in parts])

    def told(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states = rows["encoder_hidden_states"]
        return {**rows, _WEIGHTS: shares.to(states).expand(len(states), -1)}

    return replace(encoded, prompt=told(encoded.prompt), empty=told(encoded.empty))


@contextmanager
def _updates_read(network: Any, weights: Tensor) -> Iterator[None]:
    """Let the updates of all adapted layers read the bias of the rows' weights, inside the block.

    It is added to the layer's input, and what the base makes of it is taken off the base's output.
    """
    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name.endswith(_targets()):
                stack.callback(module.register_forward_pre_hook(partial(_biased, weights)).remove)
                own = getattr(module, "base_layer", module)  # inside peft's layer
                stack.callback(own.register_forward_hook(partial(_corrected, weights), prepend=True).remove)
        yield


def _biased(weights: Tensor, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return args[0] + _bias(weights, args[0]), *args[1:]


def _corrected(weights: Tensor, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    with torch.no_grad():
        bias = _bias(weights, args[0])
        if isinstance(module, nn.Conv2d):  # at the border a part of the kernel sees padding
            return output - module._conv_forward(bias.expand_as(args[0]), module.weight, None)
        return output - functional.linear(bias, cast("nn.Linear", module).weight)


def _bias(weights: Tensor, inputs: Tensor) -> Tensor:
    """float[rows, channels, 1, 1] for pictures, float[rows, 1, channels] for tokens."""
    if inputs.ndim == 4:
        return (weights.to(inputs) @ directions(inputs.shape[1]).to(inputs))[:, :, None, None]
    return (weights.to(inputs) @ directions(inputs.shape[-1]).to(inputs))[:, None]


@cache
def _targets() -> tuple[str, ...]:
    """The ends of the adapted layers' names."""
    targets = yaml.safe_load((Path(__file__).parent / ADAPTER).read_text(encoding="utf-8"))["adapter"]["targets"]
    return tuple(f".{target}" for target in targets)


def _adapter_is_off(network: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    return bool(layers) and all(layer.disable_adapters for layer in layers)
