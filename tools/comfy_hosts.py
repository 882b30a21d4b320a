"""Find the ComfyUI installations that the host tests run against.

They are searched in this order: ``COMFYUI_PATH`` (several, separated by ``:``), the host that this checkout is installed in,
``~/ComfyUI*`` and ``hosts/*`` in this checkout (where ``make host`` puts one). Run as a script, this prints one path a line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOSTS = ROOT / "hosts"
"""Git ignores this folder. ``make host`` clones a ComfyUI into it."""

HOW_TO_GET_ONE = (
    "No ComfyUI was found. Run `make host` to get one into this checkout, or point COMFYUI_PATH at one "
    "(0.33.0 and 0.3.64 are the versions that are always tested)."
)


def is_host(folder: Path) -> bool:
    """Return whether a folder holds a ComfyUI."""
    return (folder / "comfyui_version.py").is_file() and (folder / "comfy").is_dir()


def version(folder: Path) -> tuple[int, ...]:
    """Return a host's version, or (0,) if its file does not name one."""
    found = re.search(r'__version__ = "(\d+(?:\.\d+)*)', (folder / "comfyui_version.py").read_text())
    return tuple(map(int, found.group(1).split("."))) if found else (0,)


def title(folder: Path) -> str:
    """Return a host's version and folder, because a snapshot between two releases has the number of the older one."""
    return f"ComfyUI {'.'.join(map(str, version(folder)))} in {folder.name}"


def find_hosts() -> list[Path]:
    """Return every host, newest version first.

    Raises:
        SystemExit: ``COMFYUI_PATH`` names a folder without a ComfyUI.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        hosts = [Path(part).expanduser().resolve() for part in named.split(":") if part]
        wrong = [str(host) for host in hosts if not is_host(host)]
        if wrong:
            raise SystemExit(f"COMFYUI_PATH names no ComfyUI: {', '.join(wrong)} (no comfyui_version.py there).")
    else:
        around = ROOT.parent.parent  # ComfyUI/custom_nodes/diffusion-blend
        hosts = [around] if ROOT.parent.name == "custom_nodes" and is_host(around) else []
        places = [*sorted(Path.home().glob("ComfyUI*")), *sorted(HOSTS.glob("*"))]
        hosts = hosts or [folder.resolve() for folder in places if is_host(folder)]
    return sorted(dict.fromkeys(hosts), key=version, reverse=True)


if __name__ == "__main__":
    print("\n".join(map(str, find_hosts())))
