"""How an adapter's configuration scales its updates, as peft and diffusers store it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_STORED = "lora_adapter_metadata"


@dataclass(frozen=True)
class Scaling:
    """How peft scales an adapter: ``alpha / rank``, or ``alpha / sqrt(rank)`` for rank-stabilised LoRA.

    Attributes:
        alpha: of layers without a pattern; None is the rank itself, so a scale of 1.
        patterns: end of a layer's name -> its alpha.
        stabilised: whether the rank's square root divides.
        rank: of the configuration, for a LoKr whose file holds whole factors; 0 where it is unknown.
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    stabilised: bool = False
    rank: int = 0

    def of(self, layer: str, rank: int) -> float:
        """The factor on a layer's update. Rank 0 takes the configuration's."""
        rank = rank or self.rank
        ends = (value for end, value in self.patterns.items() if re.match(rf"(.*\.)?({end})$", layer))
        alpha = next(ends, self.alpha)
        if alpha is None or not rank:
            return 1.0
        return alpha / rank**0.5 if self.stabilised else alpha / rank


def stored_config(metadata: Mapping[str, str], parts: Sequence[str] = ("unet", "transformer")) -> dict[str, Any]:
    """The peft configuration that diffusers stores in a file's header; empty where there is none.

    Args:
        metadata: the header.
        parts: names of the pipeline's part, the denoiser or a text encoder.

    Raises:
        ValueError: the entry is damaged.
    """
    text = metadata.get(_STORED, "{}")
    stored = read_config(text, f"its header entry {_STORED}")
    return {key.partition(".")[2]: value for key, value in stored.items() if key.partition(".")[0] in parts}


def read_config(text: str, what: str) -> dict[str, Any]:
    """Read a configuration.

    Args:
        text: JSON.
        what: where it stands, for the message.

    Raises:
        ValueError: it is not JSON of a mapping.
    """
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{what} is {text[:200]!r}, which is no configuration in JSON: {_REMEDY}")
    return config


def scaling_of(config: Mapping[str, Any]) -> Scaling:
    """The scaling of a configuration of peft.

    Raises:
        ValueError: an entry of it is not what peft writes.
    """
    alpha = config.get("lora_alpha", config.get("alpha"))  # LoHa and LoKr of peft say alpha
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise ValueError(f"its configuration has the alpha_pattern {patterns!r}, which is no mapping: {_REMEDY}")
    for end in patterns:
        try:
            re.compile(end)
        except (re.error, TypeError) as error:
            raise ValueError(f"its configuration has the alpha_pattern {end!r} ({error}): {_REMEDY}") from error
    rank = config.get("r") or 0
    return Scaling(
        None if alpha is None else _number("lora_alpha", alpha),
        {end: _number(f"alpha_pattern {end!r}", value) for end, value in patterns.items()},
        bool(config.get("use_rslora")),
        int(_number("r", rank)),
    )


_REMEDY = "correct it, or save the adapter again"


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ValueError(f"its configuration has {name} {value!r}, which is no finite number: {_REMEDY}")
    return float(value)
