"""The tokenizer of the miniature world: a CLIP tokenizer whose vocabulary is this world's words and single letters."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import TYPE_CHECKING

from .language import KINDS, descriptions, write

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

TOKENS = 24  # a prompt's length in tokens, with start, end and padding
_START, _END = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """Every word that a prompt can contain, sorted."""
    return sorted({word for kind in KINDS for description in descriptions(kind) for word in write(description).split()})


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the files of a tokenizer that gives each word of this world one token, and load it.

    The merges are learned by byte-pair encoding on the words. Other words fall apart into letters, which were never
    trained. Padding is the end token, as in Stable Diffusion 1.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(vocab_size=1000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(words(), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    pairs = [tuple(merge.split()) if isinstance(merge, str) else tuple(merge) for merge in merges]
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    symbols = [*letters, *(letter + "</w>" for letter in letters), *(one + two for one, two in pairs), _START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{one} {two}" for one, two in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS}
    settings |= {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)
