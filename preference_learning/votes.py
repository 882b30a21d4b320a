"""Votes between two options, and their text: the only state of a search. It is saved with the workflow and can be typed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

FIRST, SECOND, EQUAL, BAD = ">", "<", "=", "x"
"""The outcomes of a duel: the first option is better, the second is, neither is, and both are bad."""

SHORT = {"1": FIRST, "2": SECOND, "0": EQUAL, "x": BAD}
"""A typed vote without its options: the keys of the view. The options are those that the search proposed at that moment."""

MOST_VOTES = 1000
PICTURE_OPTION = "diffusion_blend_option"
"""The text chunk of a kept picture that holds the picture's option."""
_AROUND, _WITHIN, _KL = "around", "within", "kl"


@dataclass(frozen=True)
class Option:
    """A point of the search.

    Args:
        weights: one per adapter, at least 0, sum 1.
        kl_scale: the distance from the base model.
    """

    weights: tuple[float, ...]
    kl_scale: float = 1.0

    def text(self) -> str:
        """The weights and the KL scale: ".5 .5 0 kl 1"."""
        return " ".join([*(f"{weight:.4g}" for weight in self.weights), _KL, f"{self.kl_scale:.4g}"])


@dataclass(frozen=True)
class Vote:
    """The outcome of one duel."""

    first: Option
    second: Option
    outcome: str

    def text(self) -> str:
        """One line: "1 0 kl 1 > 0 1 kl 1"."""
        return f"{self.first.text()} {self.outcome} {self.second.text()}"


@dataclass(frozen=True)
class Narrowing:
    """From here on the search looks only near an option.

    Args:
        centre: the middle of the smaller region.
        within: its size as a share of the whole region, above 0 and at most 1.
    """

    centre: Option
    within: float

    def text(self) -> str:
        """One line: "around .5 .5 kl 1 within .5"."""
        return f"{_AROUND} {self.centre.text()} {_WITHIN} {self.within:.4g}"


Entry = Vote | Narrowing
Propose = Callable[[Sequence[Entry]], tuple[Option, Option]]


def write(entries: Sequence[Entry]) -> str:
    """The entries as text, one a line; `read` gives them back."""
    return "\n".join(entry.text() for entry in entries)


def read(text: str, adapters: int, propose: Propose) -> list[Entry]:
    """Read votes.

    A line is ``OPTION > OPTION`` (or ``<``, ``=``, ``x``), ``around OPTION within SHARE``, or short votes ("1 2 0 x") for the
    pairs that were proposed. An option is one weight per adapter, then perhaps ``kl`` and the KL scale. ``#`` begins a comment.

    Args:
        text: the lines.
        adapters: how many weights an option has.
        propose: gives the pair that is shown after some entries; called for short votes only.

    Returns:
        The entries in order. The weights are divided by their sum.

    Raises:
        ValueError: a line is none of these, a number is not finite or not allowed, or there are more than `MOST_VOTES` entries.
    """
    entries: list[Entry] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        where = f"Line {number} of the votes"
        if words and all(word in SHORT for word in words):
            for word in words:
                entries.append(Vote(*propose(entries), SHORT[word]))
        elif words:
            entries.append(_entry(words, adapters, where))
        if len(entries) > MOST_VOTES:
            raise ValueError(f"There are more than {MOST_VOTES} votes: keep the last ones.")
    return entries


def _entry(words: list[str], adapters: int, where: str) -> Entry:
    if words[0] == _AROUND:
        if words[-2:-1] != [_WITHIN]:
            raise ValueError(f'{where} is {" ".join(words)!r}: write "around", an option, "within" and a share.')
        within = _number(words[-1], where)
        if not 0 < within <= 1:
            raise ValueError(f"{where}: within is {within:g}; it must be above 0 and at most 1.")
        return Narrowing(_option(words[1:-2], adapters, where), within)
    outcomes = [i for i, word in enumerate(words) if word in (FIRST, SECOND, EQUAL, BAD)]
    if len(outcomes) != 1:
        raise ValueError(
            f"{where} is {' '.join(words)!r}: write 1, 2, 0 (equal) or x (both bad), or two options with >, <, = or x between."
        )
    middle = outcomes[0]
    before, after = (_option(part, adapters, where) for part in (words[:middle], words[middle + 1 :]))
    return Vote(before, after, words[middle])


def _option(words: list[str], adapters: int, where: str) -> Option:
    scale = 1.0
    if words[-2:-1] == [_KL]:
        words, scale = words[:-2], _number(words[-1], where)
    weights = [_number(word, where) for word in words]
    if len(weights) != adapters:
        raise ValueError(
            f"{where} has an option of {len(weights)} weights for {adapters} adapters: these votes are for other adapters. "
            "Clear the votes, or connect the adapters that they were given for."
        )
    total = math.fsum(weights)
    if min(weights) < 0 or total <= 0:
        raise ValueError(f"{where} has the weights {' '.join(words)}: they must be at least 0, and one above 0.")
    return Option(tuple(weight / total for weight in weights), scale)


def _number(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ValueError(f"{where} has {word!r} where a number is expected.") from None
    if not math.isfinite(value):
        raise ValueError(f"{where} has {word!r}: it must be a finite number.")
    return value
