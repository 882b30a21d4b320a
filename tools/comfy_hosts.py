"""Find the ComfyUI installations that the host tests run against.

In this order: ``COMFYUI_PATH`` (several, separated by ``:``), the host this checkout is installed in, ``~/ComfyUI*``.
Run as a script it prints one path a line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

HOW_TO_GET_ONE = (
    "No ComfyUI was found. Clone it (git clone https://github.com/comfyanonymous/ComfyUI ~/ComfyUI; v0.33.0 and v0.3.64 are "
    "the ones tested) or point COMFYUI_PATH at one."
)


def is_host(folder: Path) -> bool:
    return (folder / "comfyui_version.py").is_file() and (folder / "comfy").is_dir()


def version(folder: Path) -> tuple[int, ...]:
    """A host's version; (0,) if its file does not say."""
    found = re.search(r'__version__ = "(\d+(?:\.\d+)*)', (folder / "comfyui_version.py").read_text())
    return tuple(map(int, found.group(1).split("."))) if found else (0,)


def find_hosts() -> list[Path]:
    """Every host, newest first."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        hosts = [Path(part).expanduser().resolve() for part in named.split(":") if part]
        wrong = [str(host) for host in hosts if not is_host(host)]
        if wrong:
            raise SystemExit(f"COMFYUI_PATH names no ComfyUI: {', '.join(wrong)} (no comfyui_version.py there).")
    else:
        checkout = Path(__file__).resolve().parents[1]
        around = checkout.parent.parent  # ComfyUI/custom_nodes/diffusion-blend
        hosts = [around] if checkout.parent.name == "custom_nodes" and is_host(around) else []
        hosts = hosts or [folder.resolve() for folder in sorted(Path.home().glob("ComfyUI*")) if is_host(folder)]
    return sorted(dict.fromkeys(hosts), key=version, reverse=True)


if __name__ == "__main__":
    print("\n".join(map(str, find_hosts())))
