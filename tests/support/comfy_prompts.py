"""Small graphs in API form over the files of ``make_server_models``."""

from __future__ import annotations

from typing import Any

from make_server_models import CHECKPOINT, LORAS

Prompt = dict[str, dict[str, Any]]

# Small enough for two cores: an 8 x 8 latent, three steps.
SIZE = 64
SAMPLING = {"seed": 7, "steps": 3, "cfg": 4.0, "sampler_name": "euler_ancestral", "scheduler": "normal", "denoise": 1.0}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def base(sampler: dict[str, Any]) -> Prompt:
    """Make the host's text-to-image graph around a sampler node. It has the ids "model", "positive", ... for links."""
    sampler["inputs"] = {
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["latent", 0],
        **SAMPLING,
        **sampler["inputs"],
    }
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "positive": node("CLIPTextEncode", clip=["checkpoint", 1], text="a lighthouse at dusk"),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text="blurry"),
        "latent": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1),
        "sampler": sampler,
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="diffusion_blend"),
    }


def loras(*files: str) -> dict[str, Any]:
    """Make a Load Reward LoRAs with these files; the other inputs are None."""
    chosen = [*files, *["None"] * (4 - len(files))]
    inputs: dict[str, Any] = {}
    for number, file in enumerate(chosen, start=1):
        inputs |= {f"lora_{number}": file, f"strength_{number}": 1.0}
    return node("LoadRewardLoRAs", **inputs)


def preference(*weights: float, kl_scale: float = 1.0, **links: Any) -> dict[str, Any]:
    padded = [*weights, *[0.0] * (4 - len(weights))]
    named = {f"weight_{number}": weight for number, weight in enumerate(padded, start=1)}
    return node("PreferenceWeights", **named, kl_scale=kl_scale, **links)


def blended(
    *weights: float,
    kl_scale: float = 1.0,
    files: tuple[str, ...] = LORAS[:2],
    class_type: str = "BlendedKSampler",
    sampler: dict[str, Any] | None = None,
) -> Prompt:
    """Make a whole graph with one of this extension's samplers.

    ``kl_scale`` goes to the preference, ``sampler`` holds inputs of the sampler."""
    prompt = base(
        node(
            class_type,
            model=["checkpoint", 0],
            reward_loras=["loras", 0],
            preference=["preference", 0],
            **(sampler or {}),
        )
    )
    prompt["loras"] = loras(*files)
    prompt["preference"] = preference(*weights, kl_scale=kl_scale, reward_loras=["loras", 0])
    return prompt


def for_tests(prompt: Prompt) -> Prompt:
    """Change a template's graph so that it runs here: this folder's files, small images and few steps.

    The miniature's templates come with their files, so only their number of steps changes.
    """
    weights = [f"weight_{number}" for number in range(1, 5)]
    adapters = max([2, *(n for item in prompt.values() for n, w in enumerate(weights, 1) if item["inputs"].get(w, 0))])
    changes: dict[str, dict[str, Any]] = {
        "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
        "LoadRewardLoRAs": {f"lora_{number}": file for number, file in enumerate(LORAS[:adapters], start=1)},
        "EmptyLatentImage": {"width": SIZE, "height": SIZE},
    }
    made = {}
    for key, item in prompt.items():
        own = any(str(value).startswith("miniature/") for value in item["inputs"].values())
        inputs = item["inputs"] | ({} if own else changes.get(item["class_type"], {}))
        if "steps" in inputs:
            inputs["steps"] = SAMPLING["steps"]
        made[key] = item | {"inputs": inputs}
    return made
