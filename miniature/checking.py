"""The accuracy of a miniature model: its pictures of trained and held-out combinations, read by the parser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..artifacts.shares import wilson_interval
from .grading import Grade, grade
from .language import KINDS, Description, sample, write
from .parser import parse
from .sizes import SIZE

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Sampling:
    """DDIM settings: steps, eta (1 is the paper's), guidance, pictures at once."""

    steps: int = 25
    eta: float = 1.0
    guidance: float = 3.0
    batch: int = 64


def generate(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, settings: Sampling) -> Tensor:
    """Pictures for prompts, float32[B, 3, 32, 32] in 0..1; a function of the prompts, the seed and the batch size."""
    pictures = []
    for begin in tqdm(range(0, len(prompts), settings.batch), desc="pictures", leave=False):
        result: Any = pipeline(
            prompts[begin : begin + settings.batch],
            height=SIZE,
            width=SIZE,
            num_inference_steps=settings.steps,
            eta=settings.eta,
            guidance_scale=settings.guidance,
            generator=torch.Generator().manual_seed(seed + begin),
            output_type="pt",
        )
        pictures.append(result.images)
    return torch.cat(pictures).float()


def draw_prompts(count: int, held_out: bool, kind: str, seed: int) -> list[Description]:
    """Descriptions of one kind, from the trained or the held-out combinations."""
    generator = np.random.default_rng([seed, KINDS.index(kind), int(held_out)])
    return [sample(generator, held_out, kind) for _ in range(count)]


def check(pipeline: StableDiffusionPipeline, count: int, seed: int, settings: Sampling) -> list[dict[str, Any]]:
    """Grade ``count`` pictures of every kind, trained and (for counts, pairs and relations) held out.

    Returns:
        A row per kind, and one over the kinds for each set: pictures, the share that is exact with its 95 % Wilson
        interval, the share with the right things in any places, and the mean grade.
    """
    rows: list[dict[str, Any]] = []
    for held_out in (False, True):
        together: list[Grade] = []
        for kind in KINDS[2:] if held_out else KINDS:
            wanted = draw_prompts(count, held_out, kind, seed)
            pictures = generate(pipeline, [write(description) for description in wanted], seed, settings)
            grades = [grade(found, description) for found, description in zip(parse(pictures), wanted, strict=True)]
            together += grades
            rows.append(_row("held out" if held_out else "trained", kind, grades))
        rows.append(_row("held out" if held_out else "trained", "all", together))
    return rows


def _row(combinations: str, kind: str, grades: list[Grade]) -> dict[str, Any]:
    exact = sum(result.exact for result in grades)
    low, high = wilson_interval(exact, len(grades))
    return {
        "combinations": combinations,
        "kind": kind,
        "pictures": len(grades),
        "exact": exact / len(grades),
        "low": low,
        "high": high,
        "right things": sum(result.things for result in grades) / len(grades),
        "grade": sum(result.score for result in grades) / len(grades),
    }
