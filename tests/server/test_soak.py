"""A long day of an artist: thousands of random prompts on one server, its memory flat and its images the same at the end.

Run by its own command: ``.venv/bin/python -P -m pytest -s -m full tests/server/test_soak.py``; the environment variable
``SOAK_PROMPTS`` sets their number (2,000).
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import comfy_prompts
import numpy as np
import psutil
import pytest
from comfy_prompts import Prompt, node
from comfy_server import CHECKOUT, ComfyServer
from PIL import Image

ADAPTERS = [
    f"miniature/{path.name}" for path in sorted((CHECKOUT / "miniature/weights/adapters").glob("*.safetensors"))
]
PROMPTS = ("a red circle", "two blue squares", "a green square above a cyan triangle")
KINDS = ("BlendedKSampler", "StochasticAdapterSampler", "KLScaleSampler", "MSDDASampler", "BlendModel")
AT_ONCE = 50


def random_prompt(chance: random.Random) -> Prompt:
    """A graph over the miniature with some adapters, a preference, a method and a seed."""
    kind = chance.choice(KINDS)
    files = tuple(chance.sample(ADAPTERS, chance.randint(1, min(4, len(ADAPTERS)))))
    kl_scale = chance.choice((0.5, 1.0) if kind == "StochasticAdapterSampler" else (0.0, 0.5, 1.0, 1.5))
    links: dict[str, Any] = {"model": ["miniature", 0], "positive": ["positive", 0], "negative": ["negative", 0]}
    links |= {"latent_image": ["miniature", 3], "seed": chance.randrange(2**32), "steps": 2, "cfg": 2.0}
    links |= {"scheduler": "normal", "denoise": 1.0}
    blend = {"reward_loras": ["loras", 0], "preference": ["preference", 0]}
    if kind != "MSDDASampler":
        links["sampler_name"] = "euler_ancestral"
    own: dict[str, dict[str, Any]] = {
        "BlendedKSampler": {},
        "StochasticAdapterSampler": {"draws": chance.choice(("stratified", "independent"))},
        "KLScaleSampler": {"kl_scale": kl_scale},
        "MSDDASampler": {f"eta_{i}": chance.choice((0.5, 1.0)) for i in range(1, 5)} | {"renormalise": True},
        "BlendModel": {},
    }
    prompt: Prompt = {
        "miniature": node("LoadMiniature", batch_size=2),
        "positive": node("CLIPTextEncode", clip=["miniature", 1], text=chance.choice(PROMPTS)),
        "negative": node("CLIPTextEncode", clip=["miniature", 1], text=""),
        "loras": comfy_prompts.loras(*files),
        "preference": comfy_prompts.preference(
            *[round(chance.uniform(0.05, 1), 2) for _ in files], kl_scale=kl_scale, reward_loras=["loras", 0]
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["miniature", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="soak"),
    }
    if kind == "BlendModel":
        method = chance.choice(("blend", "soup", "early") if kl_scale > 1 else ("blend", "soup", "early", "stochastic"))
        evaluation = chance.choice(("auto", "batched", "sequential"))
        inputs = blend | {"model": ["miniature", 0], "method": method, "draws": "stratified", "evaluation": evaluation}
        prompt["blend"] = node("BlendModel", **inputs)
        prompt["sampler"] = node("KSampler", **links | {"model": ["blend", 0]})
    else:
        prompt["sampler"] = node(kind, **links | blend | own[kind])
    return prompt


def digest(server: ComfyServer, prompt: Prompt) -> str:
    """A hash of the pixels that a prompt saves."""
    saved = server.run(prompt)["save"]["images"]
    pixels = []
    for entry in saved:
        with Image.open(server.image(entry)) as image:
            pixels.append(np.asarray(image))
    return hashlib.sha256(np.stack(pixels).tobytes()).hexdigest()


def forget(server: ComfyServer) -> None:
    """Clear the server's history and the saved files: they grow by design."""
    server.post("/history", {"clear": True})
    for file in Path(server.base, "output").glob("soak*"):
        file.unlink()


@pytest.mark.full
def test_memory_stays_flat_and_images_stay_the_same(server: ComfyServer) -> None:
    count = int(os.environ.get("SOAK_PROMPTS", "2000"))
    fixed = [random_prompt(random.Random(f"fixed {i}")) for i in range(10)]
    before = [digest(server, prompt) for prompt in fixed]
    process = psutil.Process(server.pid)
    resident: list[tuple[int, int]] = []
    for start in range(0, count, AT_ONCE):
        queued = [
            server.post("/prompt", {"prompt": random_prompt(random.Random(number))})["prompt_id"]
            for number in range(start, start + AT_ONCE)
        ]
        for prompt_id in queued:
            server.wait(prompt_id, 300)  # raises what the prompt failed of
        forget(server)
        resident.append((start + AT_ONCE, process.memory_info().rss))
    after = [digest(server, prompt) for prompt in fixed]
    assert after == before
    # The first quarter is the allocator's warm-up.
    print(*(f"{number}:{size / 2**20:.1f}" for number, size in resident), "MiB")
    numbers, sizes = np.array(resident[len(resident) // 4 :], dtype=np.float64).T
    slope = np.polyfit(numbers, sizes, 1)[0] * 1000 / sizes.mean()
    print(f"{count} prompts: {sizes.mean() / 2**20:.0f} MiB resident, slope {slope:+.2%} per 1,000 prompts")
    assert slope < 0.01
    log = server.log.read_text(errors="replace")
    assert "Traceback" not in log and "ERROR" not in log
