"""The count of a training step's memory: hand-computed peaks, and the decoder's checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusion_blend.training.config import AdapterConfig, BaseConfig
from diffusion_blend.training.models.bases import load_base
from diffusion_blend.training.models.diffusers_model import DiffusersModel
from torch.utils.checkpoint import checkpoint

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from memory_model import CARD, CASES, GIB, Peak, count


def test_peaks_by_hand() -> None:
    """Ten products of 1 MiB: alone, kept for the backward pass, and recomputed in two halves."""
    size, side = 4 * 512 * 512, 512
    weights = [torch.zeros(side, side, device="meta", requires_grad=True) for _ in range(10)]
    x = torch.zeros(side, side, device="meta")

    def run(part: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        for weight in part:
            value = value @ weight
        return value

    with Peak() as alone, torch.no_grad():
        run(weights, x)
    assert alone.largest == 2 * size  # the last product and its input
    with Peak() as kept:
        run(weights, x)
        assert kept.alive <= 2 * size
        result = run(weights, x)
    assert kept.largest == 11 * size or kept.largest == 10 * size
    del result
    with Peak() as halves:
        value = checkpoint(run, weights[5:], checkpoint(run, weights[:5], x, use_reentrant=False), use_reentrant=False)
        assert isinstance(value, torch.Tensor)
    assert halves.largest < 5 * size


@pytest.mark.full
def test_the_cases_fit_a_24_gb_card() -> None:
    """SDXL with DRaFT-1 and DPOK; SD3.5-M and Z-Image, quantised, with GRPO."""
    for name in ("sdxl-draft1", "sdxl-dpok", "sd35m-grpo-nf4", "z-image-grpo-nf4"):
        found = count(CASES[name])
        print(name, {part: round(value / GIB, 2) for part, value in found.items()})
        assert found["total"] < CARD * GIB


def test_the_decoders_checkpoints_change_no_gradient(tiny_sd: Path) -> None:
    found = []
    for checkpointing in (False, True):
        base = load_base(BaseConfig(path=str(tiny_sd)), torch.device("cpu"), allow_download=False)
        model = DiffusersModel(base, AdapterConfig(rank=2), 0, gradient_checkpointing=checkpointing)
        latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with Peak() as peak:
            model.decode_differentiable(latents).square().sum().backward()
        found.append((latents.grad, peak.largest))
    assert torch.equal(found[0][0], found[1][0])  # pyright: ignore[reportArgumentType]
    assert found[1][1] < found[0][1]
