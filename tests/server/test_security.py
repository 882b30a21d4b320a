"""What a graph from somebody else may not do on the server: read outside the model folders, reach the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import comfy_prompts
import pytest
from comfy_prompts import node
from comfy_server import ComfyServer, PromptError, network_attempts
from make_server_models import LORAS
from safetensors.torch import load_file, save_file


def loading(server: ComfyServer, file: str) -> dict[str, Any]:
    """Sample with this file as the only adapter; the outputs by node."""
    return server.run(comfy_prompts.blended(1.0, files=(file,)))


def outside(server: ComfyServer) -> Path:
    """A good adapter beside the folder that the server reads adapters from."""
    file = server.base / "models" / "outside.safetensors"
    save_file(load_file(server.base / "models" / "loras" / LORAS[0]), file)
    return file


def test_the_way_to_load_works(server: ComfyServer) -> None:
    assert loading(server, LORAS[0])["save"]["images"]


@pytest.mark.parametrize(
    "way", ["up", "absolute", "up from a folder", "up from the miniature", "backslashes", "a link's name"]
)
def test_no_file_outside_the_lora_folders_can_be_chosen(server: ComfyServer, way: str) -> None:
    file = outside(server)
    name = {
        "up": "../outside.safetensors",
        "absolute": str(file),
        "up from a folder": f"{Path(LORAS[0]).stem}/../../outside.safetensors",
        "up from the miniature": "miniature/../../../../../models/outside.safetensors",
        "backslashes": "..\\outside.safetensors",
        "a link's name": "/proc/self/cwd/../outside.safetensors",
    }[way]
    with pytest.raises(PromptError, match="no such file in the loras folder"):
        loading(server, name)


@pytest.mark.parametrize("folder", ["..", "../loras", "/", ".", "automatic/.."])
def test_no_folder_outside_can_be_a_reward_model(server: ComfyServer, folder: str) -> None:
    with pytest.raises(PromptError, match="Value not in list"):
        server.run(scoring("aesthetic", model_folder=folder))


@pytest.mark.parametrize("reward", ["os:getcwd", "own_rewards:redness", "miniature.__builtins__"])
def test_no_function_can_be_named_as_a_reward(server: ComfyServer, reward: str) -> None:
    with pytest.raises(PromptError, match="Value not in list"):
        server.run(scoring(reward))


def scoring(reward: str, **inputs: Any) -> dict[str, Any]:
    model = {"reward": reward, "model_folder": "automatic", "allow_download": False} | inputs
    return {
        "image": node("EmptyImage", width=32, height=32, batch_size=1, color=0),
        "model": node("LoadRewardModel", **model),
        "scores": node("ScoreImages", images=["image", 0], reward_model=["model", 0], prompt="a circle", name=""),
        "shown": node("PreviewAny", source=["scores", 1]),
    }


def test_nothing_tried_to_reach_another_machine(server: ComfyServer) -> None:
    """Since the server's start: the import, every node of every test before this one, and a reward that is not here."""
    with pytest.raises(PromptError, match="is not on this machine.*Switch on allow_download"):
        server.run(scoring("pick_score"))
    assert server.run(scoring("miniature.warmth"))["shown"]
    server.run(comfy_prompts.blended(0.5, 0.5))
    assert network_attempts(server) == []


def test_an_attempt_would_be_noted(server: ComfyServer, tmp_path: Path) -> None:
    watched = os.environ | {"PYTHONPATH": str(server.base / "hide"), "NETWORK_LOG": str(tmp_path / "log")}
    reach = "import socket\ntry: socket.create_connection(('192.0.2.1', 9), 0.01)\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", reach], env=watched, check=True)
    assert "192.0.2.1" in (tmp_path / "log").read_text()
