"""Where reward models come from: a local folder, this machine's cache or, with consent only, a download."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger("diffusion_blend")


@dataclass(frozen=True)
class Source:
    """A set of files on the Hugging Face hub.

    Attributes:
        repository: owner/name.
        patterns: which files are needed.
        size: of the download, in words.
        licence: as its authors state it.
    """

    repository: str
    patterns: Sequence[str]
    size: str
    licence: str


class NotOnThisMachine(ValueError):
    """A reward model that is not on this machine and may not be fetched.

    Attributes:
        what: the files, from where, how large, under which licence.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"not on this machine: {what}. {remedy}")
        self.what = what


WEIGHTS = ("*.json", "*.txt", "*.safetensors")
TOKENIZER = ("*.json", "*.txt")
CLIP_L14 = Source("openai/clip-vit-large-patch14", WEIGHTS, "1.7 GB", "MIT (OpenAI CLIP)")
CLIP_H14_PROCESSOR = Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", TOKENIZER, "4 MB", "MIT")
PICK_SCORE = Source("yuvalkirstain/PickScore_v1", WEIGHTS, "3.9 GB", "MIT (PickScore)")
HPS_V2 = Source("adams-story/HPSv2-hf", WEIGHTS, "3.9 GB", "Apache-2.0 (HPSv2)")
IMAGE_REWARD = Source("THUDM/ImageReward", ("ImageReward.pt",), "1.8 GB", "Apache-2.0")
BERT_VOCABULARY = Source("google-bert/bert-base-uncased", ("vocab.txt", "tokenizer*.json"), "1 MB", "Apache-2.0")
AESTHETIC_HEAD = Source(
    "trl-lib/ddpo-aesthetic-predictor", ("*.pth",), "4 MB", "Apache-2.0 (LAION improved aesthetic predictor)"
)


def locate(source: Source, folder: str | None, *, allow_download: bool) -> Path:
    """Find a source's files.

    Args:
        source: what is needed.
        folder: the user's own copy, or None.
        allow_download: whether it may be fetched when it is not on this machine.

    Returns:
        A folder with the files.

    Raises:
        NotOnThisMachine: nothing is here and downloads are not allowed; the message says what would be fetched, from
            where, how large, and under which licence.
        ValueError: the user's folder does not exist or lacks the files.
    """
    if folder is not None:
        path = Path(folder)
        if not any(file for pattern in source.patterns for file in path.glob(pattern)):
            raise ValueError(
                f"{folder} holds none of {', '.join(source.patterns)}: it should be a copy of {_page(source)}"
            )
        return path
    # Only here: listing and loading the rewards that need no model must not import it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = list(source.patterns)
    try:
        return Path(snapshot_download(source.repository, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError as error:
        what = f"{', '.join(patterns)} from {_page(source)}, {source.size}, licence {source.licence}"
        if not allow_download:
            remedy = "Give --allow_download true to fetch it, or a local copy with --reward_folders.NAME FOLDER"
            raise NotOnThisMachine(what, remedy) from error
    logger.info("downloading %s", what)
    return Path(snapshot_download(source.repository, allow_patterns=patterns))


def _page(source: Source) -> str:
    return f"https://huggingface.co/{source.repository}"


@dataclass(frozen=True)
class ModelRequest:
    """What a reward with a model may use.

    Attributes:
        folder: the user's own copy of the model, or None.
        device: where the model computes.
        allow_download: whether it may be fetched.
    """

    folder: str | None
    device: torch.device
    allow_download: bool

    def find(self, source: Source) -> Path:
        """Find a source's files; as `locate`."""
        return locate(source, self.folder, allow_download=self.allow_download)
