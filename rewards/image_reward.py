"""ImageReward on the BLIP classes of transformers, because the published package does not import on current libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig, BlipVisionModel, CLIPImageProcessor
from transformers.models.blip.modeling_blip_text import BlipTextModel

from ..artifacts.tensors import read_tensors
from .heads import LinearStack
from .preprocess import prepared
from .protocol import NetworkReward
from .sources import BERT_VOCABULARY, IMAGE_REWARD, ModelRequest

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""The published normalisation of the raw score."""

_TOKENS = 35
_HEAD_SIZE = 64  # of every attention head in ViT-L and BERT-base
_VISION_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
)


class ImageReward(NetworkReward):
    """Human preference for an image given its prompt (Xu et al. 2023, arXiv 2304.05977).

    ``r = (MLP(BLIP(image, prompt)) - 0.16717) / 1.03334``: BLIP's text encoder attends to the image, its first token
    goes through a linear stack; -2.3..2, unscaled in the Diffusion Blend paper.
    """

    def __init__(self, model_folder: Path, tokenizer_folder: Path, device: torch.device) -> None:
        """Load the published checkpoint and BERT's vocabulary from local folders.

        Raises:
            ValueError: the checkpoint is not ImageReward's.
        """
        state = read_tensors(model_folder / "ImageReward.pt")
        vision, text, head = (
            _part(state, "blip.visual_encoder."),
            _part(state, "blip.text_encoder."),
            _part(state, "mlp."),
        )
        if not (vision and text and head):
            raise ValueError(f"{model_folder / 'ImageReward.pt'} is not an ImageReward checkpoint")
        self._vision, self._text, self._head = _vision(vision), _text(text), LinearStack(head)
        super().__init__([self._vision, self._text, self._head], device)
        side = self._vision.config.image_size
        self._processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        self._tokenizer: Any = BertTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = prepared(self._processor, images, self.device)
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
        ).to(self.device)
        return self.score_tensors(pixels, tokens["input_ids"], tokens["attention_mask"])

    def score_tensors(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Scores float[B] of prepared pixels float[B, 3, S, S] and tokens int64[B, 35] with their mask."""
        image = self._vision(pixel_values=pixels).last_hidden_state
        text = self._text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:-1], dtype=torch.long, device=image.device),
            is_decoder=False,
        ).last_hidden_state
        return (self._head(text[:, 0].float()) - MEAN) / STD


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _vision(state: Mapping[str, Tensor]) -> BlipVisionModel:
    """BLIP's vision transformer with the original's names mapped and the sizes read off its weights."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    patches = state["pos_embed"].shape[1] - 1
    model = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width,
            intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_depth(state, "blocks."),
            num_attention_heads=width // _HEAD_SIZE,
            image_size=round(patches**0.5) * patch,
            patch_size=patch,
            hidden_act="gelu",
            layer_norm_eps=1e-6,  # the original's; transformers' default is 1e-5
        )
    )
    renamed = {}
    for key, value in state.items():
        for old, new in _VISION_NAMES:
            key = key.replace(old, new)
        renamed["post_layernorm." + key.removeprefix("norm.") if key.startswith("norm.") else key] = value
    model.load_state_dict(renamed)
    return model


def _text(state: Mapping[str, Tensor]) -> BlipTextModel:
    """BLIP's text encoder with cross-attention; its names are the original's."""
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    model = BlipTextModel(
        BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
            intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=_depth(state, "encoder.layer."),
            num_attention_heads=width // _HEAD_SIZE,
            max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
            hidden_act="gelu",
            layer_norm_eps=1e-12,
            is_decoder=True,  # builds the cross-attention; the forward pass says that it is not causal
        ),
        add_pooling_layer=False,
    )
    model.load_state_dict({key: value for key, value in state.items() if key != "embeddings.position_ids"})
    return model


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))


def load_image_reward(request: ModelRequest) -> ImageReward:
    """Load ImageReward."""
    return ImageReward(request.find(IMAGE_REWARD), request.find(BERT_VOCABULARY), request.device)
