"""Start the newest ComfyUI found with this checkout as its only custom node pack: ``make start``.

Models, input, output and the user's settings are in ``runs/comfyui``, which git ignores. Other packs of the host are not
loaded. Options are handed to ComfyUI, for example ``make start OPTIONS="--port 9000"``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from comfy_hosts import HOW_TO_GET_ONE, ROOT, find_hosts, title

BASE = ROOT / "runs" / "comfyui"
PACK = "diffusion-blend"


def prepare(base: Path, checkout: Path = ROOT) -> None:
    """Make a base directory whose only custom node pack is a link to this checkout."""
    for name in ("custom_nodes", "models/loras", "models/checkpoints", "input", "output", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK
    if not link.exists():
        link.unlink(missing_ok=True)  # a link to a folder that has gone
        link.symlink_to(checkout, target_is_directory=True)


def command(host: Path, base: Path, options: list[str]) -> list[str]:
    """Return the command that starts a host on a base directory."""
    words = [sys.executable, str(host / "main.py"), "--base-directory", str(base)]
    words += ["--database-url", f"sqlite:///{base / 'comfyui.db'}"]
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        words.append("--cpu")
    return [*words, *options]


def main(options: list[str]) -> int:
    """Start the server and wait until it ends; returns its exit status."""
    hosts = find_hosts()
    if not hosts:
        sys.stderr.write(f"{HOW_TO_GET_ONE}\n")
        return 1
    prepare(BASE)
    port = options[options.index("--port") + 1] if "--port" in options else "8188"
    sys.stdout.write(
        f"{title(hosts[0])} with this checkout. Open http://127.0.0.1:{port} when it has started.\n"
        "Templates > Extensions > Diffusion Blend > 1 Try it - no downloads needs no download. Ctrl+C ends the server.\n"
    )
    sys.stdout.flush()
    try:
        return subprocess.run(
            command(hosts[0], BASE, options), cwd=hosts[0], env=dict(os.environ), check=False
        ).returncode
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
