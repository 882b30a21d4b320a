"""The real ComfyUI server with this extension installed as the Manager would install it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent
NETWORK_LOG = "network.log"  # the server's attempts to reach other machines, one a line
FOLDER = "diffusion-blend"  # the Manager names the folder by the normalised project name

# An artist's ComfyUI has neither this package under its import name nor anything of the training extra (and dev tools).
HIDDEN = (
    "accelerate", "diffusers", "diffusion_blend", "hypothesis", "jsonargparse", "peft", "playwright", "pytest",
    "tensorboard",
)  # fmt: skip
HIDE = """
import sys

import network_watch

HIDDEN = {hidden!r}


class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


class PromptError(Exception):
    """The server refused or failed a prompt; ``str()`` is its own message."""


@dataclass
class ComfyServer:
    """A running server.

    Args:
        url: ``http://127.0.0.1:port``.
        base: its base directory (models, custom_nodes, input, output, user).
        log: the file with all its output.
        pid: its process id.
    """

    url: str
    base: Path
    log: Path
    pid: int

    def get(self, path: str) -> bytes:
        """Return the body of a GET. Every status but success raises urllib's HTTPError."""
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return response.read()

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def post(self, path: str, body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
        return json.loads(text) if text else None

    def run(self, prompt: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
        """Queue a prompt in API form and wait for it.

        Returns:
            The outputs by node id, as in ``/history``.

        Raises:
            PromptError: the server refused it or a node failed.
            TimeoutError: the prompt has not ended after ``seconds``.
        """
        try:
            queued = self.post("/prompt", {"prompt": prompt})
        except urllib.error.HTTPError as error:
            raise PromptError(error.read().decode()) from error
        return self.wait(queued["prompt_id"], seconds)

    def wait(self, prompt_id: str, seconds: float = 120) -> dict[str, Any]:
        """Wait for a queued prompt; results and errors as in `run`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            history = self.get_json(f"/history/{prompt_id}").get(prompt_id)
            if history is not None:
                if history["status"]["status_str"] == "success":
                    return history["outputs"]
                failures = [data for name, data in history["status"]["messages"] if name == "execution_error"]
                raise PromptError(failures[0]["exception_message"] if failures else str(history["status"]))
            time.sleep(0.1)
        raise TimeoutError(f"The prompt is not done after {seconds} s; the server's log: {self.log}")

    def image(self, saved: dict[str, str]) -> Path:
        """Return the file of an output image."""
        return self.base / saved["type"] / saved["subfolder"] / saved["filename"]


def extension_files() -> list[Path]:
    """Return the files of this checkout that git ships, relative to it."""
    command = ["git", "-C", str(CHECKOUT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True).stdout.decode().split("\0")
    return [Path(name) for name in names if name and (CHECKOUT / name).is_file()]


def install(custom_nodes: Path) -> Path:
    """Copy the extension into a ``custom_nodes`` folder."""
    target = custom_nodes / FOLDER
    for file in extension_files():
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / file, target / file)
    return target


def make_models(host: Path, cache: Path) -> Path:
    """Return the tests' models folder. It is made once for each version of the scripts that make it."""
    sources = [SUPPORT / name for name in ("make_server_models.py", "comfy_models.py", "comfy_adapters.py")]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    folder = cache / digest
    if not folder.exists():
        for old in cache.glob("*"):
            shutil.rmtree(old)
        unfinished = cache / "unfinished"
        subprocess.run([sys.executable, str(sources[0]), str(host), str(unfinished)], check=True, timeout=300)
        unfinished.rename(folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def network_attempts(server: ComfyServer) -> list[str]:
    """Return the server's attempts to reach other machines since its start, each with its stack."""
    file = server.base / NETWORK_LOG
    return file.read_text().splitlines() if file.exists() else []


def prepare(base: Path, models: Path, with_extension: bool = True) -> None:
    """Lay out a base directory: the extension, the models by link, and the module that hides the training extra
    and watches the network."""
    (base / "custom_nodes").mkdir(parents=True)
    if with_extension:
        install(base / "custom_nodes")
    for file in models.glob("*/*"):
        link = base / "models" / file.relative_to(models)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    (base / "hide").mkdir()
    (base / "hide" / "sitecustomize.py").write_text(HIDE.format(hidden=HIDDEN))
    shutil.copyfile(SUPPORT / "network_watch.py", base / "hide" / "network_watch.py")


def front_end_root() -> Path | None:
    """The folder of the front end that ``COMFYUI_FRONT_END`` names; None for the one that the host pins.

    The variable names the unpacked package, or its folder ``static``.

    Raises:
        ValueError: there is no front end.
    """
    named = os.environ.get("COMFYUI_FRONT_END")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    for root in (folder, folder / "static", folder / "comfyui_frontend_package" / "static"):
        if (root / "index.html").is_file():
            return root
    raise ValueError(
        f"COMFYUI_FRONT_END names no front end: {named} (no index.html). Unpack one: `pip download --no-deps "
        "comfyui-frontend-package`, then unzip the wheel."
    )


@contextmanager
def running(host: Path, base: Path, seconds: float = 180) -> Iterator[ComfyServer]:
    """Run the host's server on a prepared base directory, and stop it at the end."""
    port = free_port()
    log = base / "server.log"
    command = [sys.executable, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base)]
    command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", f"sqlite:///{base / 'comfyui.db'}"]
    root = front_end_root()
    command += [] if root is None else ["--front-end-root", str(root)]
    environment = os.environ | {"PYTHONPATH": str(base / "hide"), "PYTHONUNBUFFERED": "1"}
    environment["NETWORK_LOG"] = str(base / NETWORK_LOG)
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=host, env=environment, stdout=output, stderr=subprocess.STDOUT)
    server = ComfyServer(f"http://127.0.0.1:{port}", base, log, process.pid)
    try:
        _wait_until_up(server, process, seconds)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_up(server: ComfyServer, process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            server.get("/system_stats")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.3)
    raise RuntimeError(f"The server did not start:\n{server.log.read_text(errors='replace')[-4000:]}")
