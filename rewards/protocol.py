"""What a reward is: a function of images and their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Reward(Protocol):
    """Scores images; larger is better."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images.

        Args:
            images: float32[B, 3, H, W] in 0..1, on the CPU.
            prompts: what each image should show, B of them.

        Returns:
            Scores, float[B].
        """
        ...


class NetworkReward:
    """A reward that computes with networks; where their weights are, there it computes, so they may be moved between calls.

    Args:
        networks: all of them; put on ``device``, without gradients, in evaluation mode.
        device: where to.
    """

    def __init__(self, networks: Sequence[nn.Module], device: torch.device) -> None:
        # A module of our own, not one of transformers: the host that moves it sets `device` on it, theirs refuse that.
        self.network = nn.ModuleList(networks).requires_grad_(False).eval().to(device)

    @property
    def device(self) -> torch.device:
        """Where the weights are now."""
        return next(self.network.parameters()).device


def score(
    rewards: Mapping[str, Reward], images: Tensor, prompts: Sequence[str], *, gradient: bool = False
) -> dict[str, Tensor]:
    """Score images with several rewards.

    A video's frames are scored as images of its prompt, and the video's score is the mean over its frames.

    Args:
        rewards: by name.
        images: float32[B, 3, H, W] in 0..1, or videos float32[B, N, 3, H, W], on the CPU.
        prompts: one per image or video.
        gradient: keep the scores' gradient by the images, which may then be on any device.

    Returns:
        Scores by name, float64[B] each, on the CPU.

    Raises:
        ValueError: a reward returned the wrong number of scores, or a score that is not finite.
    """
    if images.ndim == 5:
        count = images.shape[1]
        each = score(rewards, images.flatten(0, 1), [text for text in prompts for _ in range(count)], gradient=gradient)
        return {name: values.view(-1, count).mean(1) for name, values in each.items()}
    scores = {}
    for name, reward in rewards.items():
        with torch.set_grad_enabled(gradient):
            returned = reward(images, prompts)
        try:
            values = torch.as_tensor(returned)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"reward {name!r} returned {type(returned).__name__}: it must return one number per image ({error})"
            ) from error
        values = (values if gradient else values.detach()).cpu().double()
        if values.shape != (len(images),):
            raise ValueError(
                f"reward {name!r} returned shape {tuple(values.shape)} for {len(images)} images: "
                "it must return one number per image"
            )
        if not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).nonzero()[0, 0])
            raise ValueError(f"reward {name!r} gave {float(values[bad])} for the prompt {prompts[bad]!r}")
        scores[name] = values
    return scores


def weighted_sum(scores: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """``r = sum_k w_k r_k`` over the named scores, float64[B]; scores without a weight are left out.

    Args:
        scores: by name, float64[B].
        weights: by name; a number, or one for each image, float64[B].
    """
    return torch.stack([weight * scores[name] for name, weight in weights.items()]).sum(0)


def check_differentiable(method: str, rewards: Mapping[str, Reward], resolution: tuple[int, int], prompt: str) -> None:
    """Check that every reward has a gradient, by asking for one.

    Args:
        method: what needs them, for the message.
        rewards: by name.
        resolution: width and height of an image, pixels.
        prompt: any of the run's.

    Raises:
        ValueError: a reward is not differentiable.
    """
    for name, reward in rewards.items():
        image = torch.rand((1, 3, resolution[1], resolution[0]), generator=torch.Generator().manual_seed(0))
        image.requires_grad_(True)
        try:
            differentiable = reward(image, [prompt]).requires_grad
        except RuntimeError as error:  # numpy() of a tensor that needs its gradient, or what a guard makes of it
            raise ValueError(
                f"{method} needs reward gradients, and {name!r} has none ({error}): take another method"
            ) from error
        if not differentiable:
            raise ValueError(
                f"{method} needs reward gradients, and {name!r} is not differentiable: take another method"
            )
