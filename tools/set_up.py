"""Set up the development environment: ``python tools/set_up.py FOLDER``.

The environment can also run the newest ComfyUI that is found: its matched torch set and its requirements are installed first.
A fingerprint in ``FOLDER/.ready`` tells what the environment was made for. If nothing has changed, the program does nothing.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from comfy_hosts import HOW_TO_GET_ONE, find_hosts, version

ROOT = Path(__file__).resolve().parents[1]

# The set that ComfyUI 0.33.0 runs with. torchvision and torchaudio only fit their own torch.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")


def fingerprint(hosts: Sequence[Path], root: Path = ROOT) -> str:
    """Return a digest of everything that decides what is installed.

    Args:
        hosts: the ComfyUI installations, newest first. Only the newest one's requirements are installed.
        root: the checkout, with ``pyproject.toml`` and this program.
    """
    digest = hashlib.sha256(sys.version.encode())
    for file in (root / "pyproject.toml", root / "tools" / "set_up.py"):
        digest.update(file.read_bytes())
    for host in hosts[:1]:
        digest.update(f"{host} {version(host)}".encode())
        digest.update((host / "requirements.txt").read_bytes())
    return digest.hexdigest()


def install(folder: Path, hosts: Sequence[Path]) -> None:
    """Make the virtual environment and install everything into it.

    Args:
        folder: of the environment.
        hosts: the ComfyUI installations, newest first.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
    command = [python, "-m", "uv", "pip", "install", "--python", python, *TORCH]
    subprocess.run(command, check=True)
    for host in hosts[:1]:
        subprocess.run([*command, "-r", host / "requirements.txt"], check=True)
    subprocess.run([*command, "--editable", f"{ROOT}[training,dev]"], check=True)


def main(name: str) -> None:
    """Set up the environment in a folder unless it is up to date."""
    folder, hosts = Path(name), find_hosts()
    ready, wanted = folder / ".ready", fingerprint(hosts)
    if ready.is_file() and ready.read_text() == wanted:
        return
    ready.unlink(missing_ok=True)  # an interrupted set-up is done again
    if not hosts:
        print(HOW_TO_GET_ONE, file=sys.stderr)
    install(folder, hosts)
    ready.write_text(wanted)


if __name__ == "__main__":
    main(sys.argv[1])
