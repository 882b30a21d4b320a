"""Rewards on CLIP embeddings: CLIPScore, PickScore, HPSv2 and the LAION aesthetic score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPVisionModelWithProjection

from ..artifacts.tensors import read_tensors
from .heads import LinearStack
from .preprocess import prepared
from .protocol import NetworkReward
from .sources import AESTHETIC_HEAD, CLIP_H14_PROCESSOR, CLIP_L14, HPS_V2, PICK_SCORE, ModelRequest

PICK_SCORE_SHIFT = 19.0
"""The paper subtracts it from PickScore, so that its size is that of the other rewards (arXiv 2505.18547, section 4)."""


class _Clip(NetworkReward):
    """A CLIP model that gives the cosine of image and prompt."""

    def __init__(self, model_folder: Path, processor_folder: Path, device: torch.device) -> None:
        """Load from local folders.

        Raises:
            ValueError: a folder does not hold a CLIP model or processor.
        """
        try:
            self._model = CLIPModel.from_pretrained(model_folder, use_safetensors=True, local_files_only=True)
            self._processor: Any = CLIPProcessor.from_pretrained(processor_folder, local_files_only=True)
        except OSError as error:
            raise ValueError(f"cannot read a CLIP model from {model_folder} and {processor_folder}: {error}") from error
        super().__init__([self._model], device)

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines float[B] of images and prompts, with a gradient where the images have one."""
        tokens = self._processor(
            text=list(prompts),
            padding=True,
            truncation=True,
            max_length=self._model.text_model.embeddings.position_embedding.num_embeddings,
            return_tensors="pt",
        ).to(self.device)
        pixels = prepared(self._processor.image_processor, images, self.device)
        output = self._model(**tokens, pixel_values=pixels)
        return (output.image_embeds * output.text_embeds).sum(1)  # both have length 1

    @property
    def logit_scale(self) -> Tensor:
        return self._model.logit_scale.exp()


class ClipScore(_Clip):
    """``max(100 cos(image, prompt), 0)`` (Hessel et al. 2021, CLIPScore, arXiv 2104.08718, eq. 1, with 100 for its 2.5
    as torchmetrics does); 25-40 on good images."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (100 * self.cosine(images, prompts)).clamp(min=0)


class PickScore(_Clip):
    """``exp(logit_scale) cos(image, prompt) - 19`` (Kirstain et al. 2023, arXiv 2305.01569, eq. 1; the shift is the
    Diffusion Blend paper's); about -3..5."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.logit_scale * self.cosine(images, prompts) - PICK_SCORE_SHIFT


class HpsV2(_Clip):
    """``cos(image, prompt)`` of the CLIP-H tuned on human preferences (Wu et al. 2023, HPSv2, arXiv 2306.09341);
    0.25-0.33."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.cosine(images, prompts)


class Aesthetic(NetworkReward):
    """LAION aesthetic predictor v2: a linear stack on the CLIP-L/14 image embedding of length 1; 1-10, usually
    4.5-7."""

    def __init__(self, clip_folder: Path, head_folder: Path, device: torch.device) -> None:
        """Load CLIP's vision tower and the head.

        Raises:
            ValueError: a folder does not hold them.
        """
        heads = sorted(head_folder.glob("*.pth"))
        if not heads:
            raise ValueError(f"{head_folder} holds no .pth file with the aesthetic head")
        self._head = LinearStack(read_tensors(heads[0]))
        try:
            self._model = CLIPVisionModelWithProjection.from_pretrained(
                clip_folder, use_safetensors=True, local_files_only=True
            )
            self._processor: Any = CLIPImageProcessor.from_pretrained(clip_folder, local_files_only=True)
        except OSError as error:
            raise ValueError(f"cannot read a CLIP model from {clip_folder}: {error}") from error
        super().__init__([self._model, self._head], device)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:  # noqa: ARG002  (every reward gets them)
        features = self._model(pixel_values=prepared(self._processor, images, self.device)).image_embeds
        return self._head(features / features.norm(dim=1, keepdim=True))


def load_pick_score(request: ModelRequest) -> PickScore:
    """Load PickScore."""
    return PickScore(request.find(PICK_SCORE), request.find(CLIP_H14_PROCESSOR), request.device)


def load_clip_score(request: ModelRequest) -> ClipScore:
    """Load CLIPScore."""
    folder = request.find(CLIP_L14)
    return ClipScore(folder, folder, request.device)


def load_hps_v2(request: ModelRequest) -> HpsV2:
    """Load HPSv2."""
    return HpsV2(request.find(HPS_V2), request.find(CLIP_H14_PROCESSOR), request.device)


def load_aesthetic(request: ModelRequest) -> Aesthetic:
    """Load the LAION aesthetic predictor."""
    return Aesthetic(request.find(CLIP_L14), request.find(AESTHETIC_HEAD), request.device)
