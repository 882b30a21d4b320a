"""Set up the development environment: python set_up.py FOLDER.

With a ComfyUI found, the environment can run it too: its matched torch set and its own requirements come first.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from comfy_hosts import HOW_TO_GET_ONE, find_hosts

ROOT = Path(__file__).resolve().parents[1]

# The set ComfyUI 0.33.0 runs with; torchvision and torchaudio only fit their own torch.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")


def main(folder: str) -> None:
    python = Path(folder) / "bin" / "python"
    run = [sys.executable, "-m"]
    if not python.exists():
        subprocess.run([*run, "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    install = [python, "-m", "uv", "pip", "install", "--python", python]
    hosts = find_hosts()
    subprocess.run([*install, *TORCH], check=True)
    if hosts:
        subprocess.run([*install, *TORCH, "-r", hosts[0] / "requirements.txt"], check=True)
    else:
        print(HOW_TO_GET_ONE, file=sys.stderr)
    subprocess.run([*install, *TORCH, "--editable", f"{ROOT}[training,dev]"], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
