"""Write ``locales/en/nodeDefs.json`` from a server's node definitions, whose texts are English.

``python tools/make_locale_en.py URL`` asks the running server at URL.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import node_contract

TARGET = Path(__file__).resolve().parents[1] / "locales" / "en" / "nodeDefs.json"


def english(object_info: dict[str, Any]) -> dict[str, Any]:
    """Return every node of this extension in the form of the front end's translations."""
    return {
        name: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                input_name: {"name": input_name, "tooltip": described[1]["tooltip"]}
                for group in ("required", "optional")
                for input_name, described in info["input"].get(group, {}).items()
            },
            "outputs": {
                str(index): {"name": output, "tooltip": tooltip}
                for index, (output, tooltip) in enumerate(
                    zip(info["output_name"], info["output_tooltips"], strict=True)
                )
            },
        }
        for name, info in object_info.items()
        if info["category"] == node_contract.CATEGORY
    }


if __name__ == "__main__":
    with urllib.request.urlopen(sys.argv[1] + "/object_info") as response:
        made = english(json.load(response))
    TARGET.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
