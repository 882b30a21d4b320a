"""One adapter that reads the preference: a prompt may end in ``@ softness:.5,warmth:.5``, and the adapter sees a bias.

This is the way of ParetoSlider (arXiv 2604.20816): a model conditioned on the preference. The bias is ``b = sum_i w_i e_i`` with
a fixed direction ``e_i`` for each reward. The adapter's updates of the cross-attention's keys and values read ``x + b`` in place
of a text token x, and the base's own weights read x:

    y = W x + B A (x + b)

So an untrained adapter is the base, and ``B A b`` is a learned bias that depends on the preference. (An added token was not
learned: it is one of 25, and at first nothing looks at it. Nor was a bias that the base's weights read, too: at first it only
disturbs.) ComfyUI knows no such bias: the adapter is for comparisons in this world only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .adapters import Mixture, read_mixture
from .model import TEXT_WIDTH
from .reward_names import REWARD_NAMES

if TYPE_CHECKING:
    from ..training.models.diffusers_model import Base
    from ..training.models.protocol import Conditioning

SEPARATOR = " @ "
_BIAS = "preference"  # its name among the rows of the conditioning
_SEED = 20260420  # of the directions


def with_preference(prompt: str, weights: Mapping[str, float]) -> str:
    """The prompt of a picture with a preference; rewards of weight 0 are left out."""
    shares = ",".join(f"{name}:{share:.6f}" for name, share in weights.items() if round(share, 6) > 0)
    return f"{prompt}{SEPARATOR}{shares}"


def split_preference(text: str) -> tuple[str, Mixture]:
    """The prompt and its preference; an empty one where the text has none."""
    prompt, separator, shares = text.partition(SEPARATOR)
    return prompt, read_mixture(shares) if separator else {}


def directions() -> Tensor:
    """The bias of each reward alone, float32[rewards, width]: orthogonal, of the size of a text token (normalized to 1)."""
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randn((TEXT_WIDTH, len(REWARD_NAMES)), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.T.float() * TEXT_WIDTH**0.5


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
        given = {name: rows for name, rows in conditioning.items() if name != _BIAS}
        if _BIAS not in conditioning or _adapter_is_off(network):
            return call_unet(network, latents, timesteps, given)
        states = given["encoder_hidden_states"]
        bias = conditioning[_BIAS][:, None].to(states)
        with _base_without(network, bias):
            return call_unet(network, latents, timesteps, {**given, "encoder_hidden_states": states + bias})

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
    bias = shares @ directions()

    def biased(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        states = rows["encoder_hidden_states"]
        return {**rows, _BIAS: bias.to(states).expand(len(states), -1)}

    return replace(encoded, prompt=biased(encoded.prompt), empty=biased(encoded.empty))


@contextmanager
def _base_without(network: Any, bias: Tensor) -> Iterator[None]:
    """Take a bias of the text off again in the base's own keys and values, inside the block; adapters beside them read it."""

    def corrected(module: nn.Linear, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output - functional.linear(bias.to(output), module.weight.to(output))

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                own = getattr(module, "base_layer", module)  # inside peft's layer
                stack.callback(own.register_forward_hook(corrected, prepend=True).remove)
        yield


def _adapter_is_off(network: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    return bool(layers) and all(layer.disable_adapters for layer in layers)
