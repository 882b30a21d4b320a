"""A CLIP of true architecture, 32 pixels, small random weights, with its processor."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_tokenizer import tiny_tokenizer


def write(folder: Path) -> Path:
    """Save the model as transformers does; returns the folder."""
    # These classes take seconds to import, and most collected tests do not need them.
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    text = {
        "vocab_size": 78,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text |= {"max_position_embeddings": 16, "bos_token_id": 76, "eos_token_id": 77, "pad_token_id": 77}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 24}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.save_pretrained(folder)
    size = {"shortest_edge": 32}
    processor = CLIPProcessor(
        CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}), tiny_tokenizer(folder / "words")
    )
    processor.save_pretrained(folder)
    return folder
