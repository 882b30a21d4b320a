"""Get a ComfyUI for the tests and for ``make start``: a shallow clone of a pinned release in ``hosts/``.

``COMFYUI_SOURCE`` names another repository, ``COMFYUI_RELEASE`` another tag.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from comfy_hosts import HOSTS, is_host

SOURCE = "https://github.com/comfyanonymous/ComfyUI"
RELEASE = "v0.33.0"


def get_host(source: str, release: str, hosts: Path = HOSTS) -> Path:
    """Clone one release of ComfyUI.

    Args:
        source: the repository's address.
        release: a tag or branch.
        hosts: the folder that the clone goes into.

    Returns:
        The clone's folder. An existing one is left as it is.

    Raises:
        SystemExit: git or the network is missing, or there is no such release. Nothing is left behind.
    """
    folder = hosts / f"ComfyUI-{release.removeprefix('v')}"
    if is_host(folder):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", release, source, str(folder)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1] if done.returncode else ""
    except FileNotFoundError:
        reason = "git is not installed"
    if reason:
        shutil.rmtree(folder, ignore_errors=True)
        raise SystemExit(f"ComfyUI {release} could not be fetched from {source}: {reason}")
    return folder


if __name__ == "__main__":
    got = get_host(os.environ.get("COMFYUI_SOURCE", SOURCE), os.environ.get("COMFYUI_RELEASE", RELEASE))
    sys.stdout.write(f"{got}\n")
