"""The tokenizer of the miniature world: a CLIP tokenizer whose vocabulary is this world's words and single letters."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
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


def merges(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Learn the merges of byte-pair encoding that make each word one symbol (Sennrich et al. 2016, arXiv 1508.07909).

    The most frequent pair comes first, of equal ones the alphabetically first. The learner of the library ``tokenizers``
    resolves ties differently in each process, and with it the numbers of the words change.
    """
    split = [(*text[:-1], f"{text[-1]}</w>") for text in texts]
    learned: list[tuple[str, str]] = []
    while counts := Counter(pair for symbols in split for pair in pairwise(symbols)):
        chosen = min(counts, key=lambda pair: (-counts[pair], pair))
        learned.append(chosen)
        split = [_merged(symbols, chosen) for symbols in split]
    return learned


def _merged(symbols: Sequence[str], pair: tuple[str, str]) -> tuple[str, ...]:
    found: list[str] = []
    for symbol in symbols:
        if found and (found[-1], symbol) == pair:
            found[-1] += symbol
        else:
            found.append(symbol)
    return tuple(found)


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the files of a tokenizer that gives each word of this world one token, and load it.

    Other words fall apart into letters, which were never trained. Padding is the end token, as in Stable Diffusion 1.
    """
    from transformers import CLIPTokenizer

    pairs = merges(words())
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
