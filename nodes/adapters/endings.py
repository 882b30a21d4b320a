"""Endings of the keys in adapter files, which say which tensor of a layer's update a key names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

HALVES = (
    ("lora_up.weight", "lora_down.weight"),
    ("lora_B.weight", "lora_A.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"),
    ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    ("lora.up.weight", "lora.down.weight"),
    ("lora_B", "lora_A"),
)
"""Endings of the two factors in each naming that the host reads."""

LORA_FACTORS = (*(ending for pair in HALVES for ending in pair), "lora_mid.weight")

GROUPS = (
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    ("hada_t1", "hada_t2"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
    ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
)
"""Endings that belong together, in the kinds whose names follow a dot."""

WHOLE = (
    *(f".{up}" for up, _ in HALVES),
    "_lora.up.weight",
    *(".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".a1.weight", ".oft_blocks", ".diff", ".w_norm", ".set_weight"),
)
"""Endings of which a layer has one, for every kind of update."""

MAGNITUDES = (
    ".lora_magnitude_vector.default.weight",
    ".lora_magnitude_vector.weight",
    ".lora_magnitude_vector.default",
    ".lora_magnitude_vector",
    ".magnitude",
)
"""Endings of a DoRA's magnitude in PEFT (peft/tuners/lora/dora.py) and ai-toolkit, which the host does not read."""

EXTRAS = (
    "alpha",
    "dora_scale",
    "rescale",
    "reshape_weight",
    "b_norm",
    "diff_b",
    "bias_indices",
    "bias_values",
    "bias_size",
)
"""Endings of tensors that accompany an update, after a dot."""

BIASES = (".diff_b", ".b_norm")
"""Endings of the update of a layer's bias."""

_OTHERS = ("lokr_w2", "lokr_t2", *(name for group in GROUPS for name in group))
_ENDINGS = sorted(
    {*WHOLE, *MAGNITUDES, "_lora.down.weight", *(f".{name}" for name in (*LORA_FACTORS, *EXTRAS, *_OTHERS))}, key=len
)[::-1]
_ENDING = re.compile("(?:" + "|".join(map(re.escape, _ENDINGS)) + ")$")


def stem(key: str) -> str:
    """Return the layer's name in a key: the key without the ending that says which tensor of the layer it is."""
    return _ENDING.sub("", key)


def missing_half(keys: Iterable[str], known: Collection[str]) -> str:
    """Return, in words, the first key whose other half is not among the known ones; empty if there is none."""
    needed = [(half, other) for pair in HALVES for half, other in (pair, pair[::-1])]
    needed += [(f".{one}", f".{other}") for group in GROUPS for one in group for other in group if one != other]
    for key in keys:
        for have, need in needed:
            if key.endswith(have) and key.removesuffix(have) + need not in known:
                return f"{key} comes without {need.lstrip('.')}; the file is incomplete."
    return ""
