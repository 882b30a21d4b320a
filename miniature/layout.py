"""Pretraining of the text encoder: its encoding of a prompt says where which colours are in the prompt's mean picture.

The UNet's own loss teaches words like *left of* hardly at all. Where red goes in "a red circle left of a blue square" depends on
the order of the things, on their colours, on the relation and on the position together, and such a product has no gradient
as long as one of its factors has no effect. Large models begin with a text encoder that was trained on pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from .language import KINDS, read

SHARES: dict[str, float] = dict(zip(KINDS, (0.05, 0.2, 0.1, 0.1, 0.55), strict=True))
CELL = 4  # pixels a side of what the layout averages
BATCH = 128
LEARNING_RATE = 2e-3
STAY = 0.1
"""Weight of the squared distance from the encodings before, which the UNet knows."""


def layouts(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean colour of each cell, float32[192], of the prompts' mean latents; without their common mean."""
    pictures = functional.pixel_shuffle(torch.stack(list(means.values())), 2)
    cells = functional.avg_pool2d(pictures, CELL).flatten(1)
    return dict(zip(means, cells - cells.mean(0), strict=True))


def learn_layout(text_encoder: nn.Module, tokenizer: Any, means: Mapping[str, Tensor], steps: int, seed: int) -> float:
    """Train the text encoder so that a linear map of its last token predicts the layout.

    ``loss = |W h - layout|^2 / |layout|^2 + STAY * (h - h_before)^2`` with h the encodings and W trained along and dropped.

    Args:
        text_encoder: a CLIPTextModel. It is changed.
        tokenizer: its tokenizer.
        means: of `examples.mean_latents`.
        steps: of AdamW.
        seed: of the order of the prompts.

    Returns:
        The share of the layouts' variance that is not predicted, at the last step.
    """
    wanted = layouts({prompt: mean for prompt, mean in means.items() if prompt})
    kinds = [read(prompt).kind for prompt in wanted]
    weights = torch.tensor([SHARES[kind] / kinds.count(kind) for kind in kinds])
    target = torch.stack(list(wanted.values()))
    ids = tokenizer(list(wanted), padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        before = text_encoder(ids).last_hidden_state
    head: Any = nn.utils.skip_init(nn.Linear, before.shape[-1], target.shape[-1])
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW([*text_encoder.parameters(), *head.parameters()], weight_decay=0.0, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    scale, missed = target.square().mean(), 1.0
    for step in (bar := tqdm(range(steps), desc="text encoder", mininterval=5)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))
        chosen = torch.multinomial(weights, BATCH, replacement=True, generator=generator)
        encoded = text_encoder(ids[chosen]).last_hidden_state
        error = (head(encoded[:, -1]) - target[chosen]).square().mean() / scale
        loss = error + STAY * (encoded - before[chosen]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(text_encoder.parameters(), 1.0)
        optimizer.step()
        missed = error.item()
        bar.set_postfix(missed=f"{missed:.3f}", refresh=False)
    return missed
