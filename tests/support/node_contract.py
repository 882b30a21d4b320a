"""The part of a server's ``/object_info`` on which saved workflows depend: order, names, types and defaults of inputs.

Run as a script it records the contract of the server at the given address: ``python node_contract.py URL > object_info.json``.
Only append to the recorded contract, because a workflow stores widget values by position.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any

CATEGORY = "Diffusion Blend"
# Lists whose entries come from the host or from the artist's folders.
FOREIGN_OPTIONS = ("sampler_name", "scheduler", "model_folder", *(f"lora_{number}" for number in range(1, 9)))
RECORDED = ("default", "min", "max", "step", "round", "control_after_generate")


def contract(object_info: dict[str, Any]) -> dict[str, Any]:
    """Return every node of this extension with its inputs and outputs in order."""
    return {
        name: {
            "display_name": info["display_name"],
            "inputs": [
                _input(input_name, group, info["input"][group][input_name])
                for group in ("required", "optional")
                for input_name in info["input_order"].get(group, [])
            ],
            "outputs": [list(pair) for pair in zip(info["output"], info["output_name"], strict=True)],
        }
        for name, info in object_info.items()
        if info["category"] == CATEGORY
    }


def _input(name: str, group: str, described: list[Any]) -> dict[str, Any]:
    kind, options = described[0], described[1] if len(described) > 1 else {}
    choices = kind if isinstance(kind, list) else options.get("options")
    entry = {"name": name, "type": "COMBO" if choices is not None else kind, "group": group}
    if choices is not None and name not in FOREIGN_OPTIONS:
        entry["options"] = choices
    return entry | {key: options[key] for key in RECORDED if key in options}


if __name__ == "__main__":
    with urllib.request.urlopen(sys.argv[1] + "/object_info") as response:
        print(json.dumps(contract(json.load(response)), indent=1))
