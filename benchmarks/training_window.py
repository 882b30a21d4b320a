"""Measure what each denoising step gives a policy gradient: its share of the gradient's size, and the direction it points in.

For several windows of noisy steps, and for per-step weights in their stead, this program compares the policy gradient of
some trajectories of the miniature with the gradient through the sampler of the same trajectories. It prints the cosine of
both, over all parameters of a fresh adapter.

    python -m benchmarks.training_window --images 96 --seeds 3
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusion_blend.miniature import rewards
from diffusion_blend.miniature.base import shipped
from diffusion_blend.training.config import AdapterConfig
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from diffusion_blend.training.models.protocol import Conditioning, predict_guided
from diffusion_blend.training.noisy_steps import noisy_range
from diffusion_blend.training.policy import PolicySteps, gaussian_log_prob, step_mean, step_std
from diffusion_blend.training.randomness import trajectory_noise
from diffusion_blend.training.rollout import collect
from torch import Tensor

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.2", "conv2"]
WINDOWS = ("all", "0:-1", "0.0:0.8", "0:-3", "0:5", "-2:")
STEPS, BATCH = 12, 8
PROMPTS = 4


def flat_gradient(model: DiffusersModel, value: Tensor) -> Tensor:
    """The gradient of a number by the adapter's parameters, float64[P]."""
    gradients = torch.autograd.grad(value, list(model.trainable().values()))
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def through_the_sampler(
    model: DiffusersModel, steps: PolicySteps, words: Conditioning, noise: Tensor, reward: Callable[..., Tensor]
) -> Tensor:
    """The gradient of the mean reward through all steps."""
    latents = noise[:, 0]
    for k in range(len(steps)):
        index = torch.full((len(latents),), k)
        output = predict_guided(model, latents, steps.timesteps[index], words, 1.0, base=False)
        latents = step_mean(steps, index, latents, output) + step_std(steps, index, latents) * noise[:, k + 1]
    return flat_gradient(model, reward(model.decode_differentiable(latents), [""] * len(latents)).mean())


def by_steps(
    model: DiffusersModel, steps: PolicySteps, words: Conditioning, states: Tensor, advantage: Tensor
) -> Tensor:
    """The policy gradient of each step, float64[T, P]; 0 for steps without noise."""
    rows = []
    for k in range(len(steps)):
        if float(steps.std[k]) == 0:
            rows.append(torch.zeros(sum(p.numel() for p in model.trainable().values()), dtype=torch.float64))
            continue
        index = torch.full((len(states),), k)
        output = predict_guided(model, states[:, k], steps.timesteps[index], words, 1.0, base=False)
        mean, std = step_mean(steps, index, states[:, k], output), step_std(steps, index, states)
        rows.append(flat_gradient(model, (advantage * gaussian_log_prob(states[:, k + 1], mean, std)).mean()))
    return torch.stack(rows)


def gradients(model: DiffusersModel, window: str, images: int, seed: int) -> tuple[Tensor, Tensor, PolicySteps]:
    """The gradient through the sampler, float64[P], and the policy gradient by steps, float64[T, P], of the same images."""
    steps = model.policy_steps(STEPS, 1.0, noisy_range(window, STEPS))
    texts = (Path(rewards.__file__).parent / "prompts.txt").read_text().splitlines()[:PROMPTS]
    keys = [("window", seed, number) for number in range(images)]
    noise = torch.stack([trajectory_noise(seed, key, STEPS, model.latent_shape) for key in keys])
    prompts = [texts[number % PROMPTS] for number in range(images)]
    parts = [(noise[at : at + BATCH], model.encode_prompts(prompts[at : at + BATCH])) for at in range(0, images, BATCH)]
    runs = [collect(model, steps, words, draws, 1.0, measure_kl=False) for draws, words in parts]
    scores = torch.cat([rewards.colourfulness(run.images, [""] * len(run.images)) for run in runs]).double()
    advantage = (scores - scores.view(-1, PROMPTS).mean(0).repeat(images // PROMPTS)).split(BATCH)
    pathwise = sum(through_the_sampler(model, steps, words, draws, rewards.colourfulness) for draws, words in parts)
    policy = sum(
        by_steps(model, steps, words, run.latents, part)
        for (_, words), run, part in zip(parts, runs, advantage, strict=True)
    )
    assert isinstance(pathwise, Tensor) and isinstance(policy, Tensor)
    return pathwise / len(parts), policy / len(parts), steps


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def report(name: str, cosines: Sequence[float], note: str = "") -> None:
    values = torch.tensor(cosines, dtype=torch.float64)
    spread = f" +- {values.std():.3f}" if len(values) > 1 else ""
    print(f"{name:28} cosine {values.mean():7.3f}{spread}  {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    model = DiffusersModel(shipped(), AdapterConfig(targets=TARGETS), 0)
    for window in WINDOWS:
        found = [gradients(model, window, options.images, seed) for seed in range(options.seeds)]
        size = torch.stack([policy.square().sum(1) for _, policy, _ in found]).mean(0)
        report(
            f"window {window}",
            [cosine(policy.sum(0), pathwise) for pathwise, policy, _ in found],
            f"share of the last two steps in the squared norm {float(size[-2:].sum() / size.sum()):.2f}",
        )
        if window != "all":
            continue
        for name, power in (("weight s/c", 1), ("weight (s/c)^2", 2)):
            cosines = []
            for pathwise, policy, steps in found:
                weight = (steps.std / steps.output.abs()) ** power
                cosines.append(cosine((weight[:, None] * policy).sum(0), pathwise))
            report(f"all, {name}", cosines)


if __name__ == "__main__":
    main()
