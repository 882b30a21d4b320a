"""BLIP's image-grounded text encoder in plain tensor operations, on the original checkpoint's keys.

Written from the papers (ViT: arXiv 2010.11929; BERT: arXiv 1810.04805; BLIP: arXiv 2201.12086), independent of
transformers: the truth that the mapped model is compared with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]
HEAD = 64


def random_checkpoint(width: int = 128, text_width: int = 64, depth: int = 2, patch: int = 16, side: int = 32) -> State:
    """Random weights under the names of ``ImageReward.pt``: ViT and BERT with heads of 64, and the score stack."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3)

    def linear(state: State, name: str, outputs: int, inputs: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(outputs, inputs), draw(outputs)

    def norm(state: State, name: str, size: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + draw(size), draw(size)

    state: State = {}
    vision = "blip.visual_encoder."
    state[f"{vision}cls_token"] = draw(1, 1, width)
    state[f"{vision}pos_embed"] = draw(1, (side // patch) ** 2 + 1, width)
    state[f"{vision}patch_embed.proj.weight"] = draw(width, 3, patch, patch) * 0.1
    state[f"{vision}patch_embed.proj.bias"] = draw(width)
    for i in range(depth):
        block = f"{vision}blocks.{i}."
        norm(state, f"{block}norm1", width)
        norm(state, f"{block}norm2", width)
        linear(state, f"{block}attn.qkv", 3 * width, width)
        linear(state, f"{block}attn.proj", width, width)
        linear(state, f"{block}mlp.fc1", 4 * width, width)
        linear(state, f"{block}mlp.fc2", width, 4 * width)
    norm(state, f"{vision}norm", width)
    text = "blip.text_encoder."
    state[f"{text}embeddings.word_embeddings.weight"] = draw(40, text_width) * 4
    state[f"{text}embeddings.position_embeddings.weight"] = draw(48, text_width) * 4
    state[f"{text}embeddings.position_ids"] = torch.arange(48)[None]
    norm(state, f"{text}embeddings.LayerNorm", text_width)
    for i in range(depth):
        layer = f"{text}encoder.layer.{i}."
        for kind, inputs in (("attention", text_width), ("crossattention", width)):
            linear(state, f"{layer}{kind}.self.query", text_width, text_width)
            linear(state, f"{layer}{kind}.self.key", text_width, inputs)
            linear(state, f"{layer}{kind}.self.value", text_width, inputs)
            linear(state, f"{layer}{kind}.output.dense", text_width, text_width)
            norm(state, f"{layer}{kind}.output.LayerNorm", text_width)
        linear(state, f"{layer}intermediate.dense", 4 * text_width, text_width)
        linear(state, f"{layer}output.dense", text_width, 4 * text_width)
        norm(state, f"{layer}output.LayerNorm", text_width)
    linear(state, "blip.vision_proj", 16, width)  # there, but not used for the score
    for position, (a, b) in {0: (text_width, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
        linear(state, f"mlp.layers.{position}", b, a)
    return state


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, HEAD).transpose(1, 2)

    scores = heads(q) @ heads(k).transpose(2, 3) / math.sqrt(HEAD)
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None, :] == 0, -math.inf)
    return (scores.softmax(-1) @ heads(v)).transpose(1, 2).flatten(2)


def image_features(state: State, pixels: Tensor) -> Tensor:
    """ViT with pre-normalisation: every token, float[B, N + 1, width]."""
    name = "blip.visual_encoder."
    patch = state[f"{name}patch_embed.proj.weight"]
    columns = functional.unfold(pixels, patch.shape[-1], stride=patch.shape[-1]).transpose(1, 2)
    x = columns @ patch.flatten(1).T + state[f"{name}patch_embed.proj.bias"]
    x = torch.cat([state[f"{name}cls_token"].expand(len(x), -1, -1), x], 1) + state[f"{name}pos_embed"]
    i = 0
    while f"{name}blocks.{i}.norm1.weight" in state:
        block = f"{name}blocks.{i}."
        qkv = _linear(state, f"{block}attn.qkv", _norm(state, f"{block}norm1", x, 1e-6))
        x = x + _linear(state, f"{block}attn.proj", _attend(*qkv.chunk(3, -1), None))
        hidden = _gelu(_linear(state, f"{block}mlp.fc1", _norm(state, f"{block}norm2", x, 1e-6)))
        x = x + _linear(state, f"{block}mlp.fc2", hidden)
        i += 1
    return _norm(state, f"{name}norm", x, 1e-6)


def raw_score(state: State, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The stack's output before normalisation, float[B]."""
    image, name = image_features(state, pixels), "blip.text_encoder."
    x = state[f"{name}embeddings.word_embeddings.weight"][tokens]
    x = x + state[f"{name}embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = _norm(state, f"{name}embeddings.LayerNorm", x, 1e-12)
    i = 0
    while f"{name}encoder.layer.{i}.output.dense.weight" in state:
        layer = f"{name}encoder.layer.{i}."
        for kind, source, hidden_from in (("attention", None, mask), ("crossattention", image, None)):
            other = x if source is None else source
            q, k, v = (
                _linear(state, f"{layer}{kind}.self.{part}", of)
                for part, of in (("query", x), ("key", other), ("value", other))
            )
            out = _linear(state, f"{layer}{kind}.output.dense", _attend(q, k, v, hidden_from))
            x = _norm(state, f"{layer}{kind}.output.LayerNorm", out + x, 1e-12)
        hidden = _gelu(_linear(state, f"{layer}intermediate.dense", x))
        x = _norm(state, f"{layer}output.LayerNorm", _linear(state, f"{layer}output.dense", hidden) + x, 1e-12)
        i += 1
    features = x[:, 0]
    for position in (0, 2, 4, 6, 7):
        features = _linear(state, f"mlp.layers.{position}", features)
    return features[:, 0]
