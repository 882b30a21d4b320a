"""What the templates of ``workflows/`` consist of; ``tests/browser/make_workflows.py`` builds them."""

from __future__ import annotations

from typing import Any, TypedDict

# The file ComfyUI's own first template asks for; the artist picks another if they have none of that name.
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
POSITIVE = "a lighthouse on a cliff at dusk, warm light in the windows, sea mist"
NEGATIVE = "blurry, low quality, watermark"
NOTE = ["#432", "#653"]
OURS = ["#233", "#355"]


class Template(TypedDict):
    id: str
    nodes: dict[str, dict[str, Any]]


def _node(
    kind: str,
    pos: tuple[int, int],
    size: tuple[int, int] = (0, 0),
    widgets: dict[str, Any] | None = None,
    links: dict[str, tuple[str, str]] | None = None,
    **other: Any,
) -> dict[str, Any]:
    return {"type": kind, "pos": list(pos), "size": list(size), "widgets": widgets or {}, "links": links or {}, **other}


def _note(pos: tuple[int, int], size: tuple[int, int], text: str) -> dict[str, Any]:
    return _node("MarkdownNote", pos, size, {"text": text}, title="Read me", color=NOTE)


def _common(note: str) -> dict[str, dict[str, Any]]:
    """Checkpoint, prompts, empty latent, adapters and preference, in two columns from the left."""
    adapters = {"reward_loras": ("loras", "reward_loras")}
    return {
        "note": _note((-420, 100), (380, 560), note),
        "checkpoint": _node("CheckpointLoaderSimple", (0, 100), (340, 0), {"ckpt_name": CHECKPOINT}),
        "loras": _node("LoadRewardLoRAs", (0, 280), (340, 0), color=OURS),
        "positive": _node("CLIPTextEncode", (400, 100), (340, 120), {"text": POSITIVE}, {"clip": ("checkpoint", "CLIP")}),
        "negative": _node("CLIPTextEncode", (400, 280), (340, 90), {"text": NEGATIVE}, {"clip": ("checkpoint", "CLIP")}),
        "preference": _node("PreferenceWeights", (400, 430), (340, 0), None, adapters, color=OURS),
        "latent": _node("EmptyLatentImage", (0, 640), (340, 0), {"width": 512, "height": 512}),
    }  # fmt: skip


def _sampler(kind: str, pos: tuple[int, int], with_preference: bool = True, **widgets: Any) -> dict[str, Any]:
    links = {
        "model": ("checkpoint", "MODEL"),
        "reward_loras": ("loras", "reward_loras"),
        "positive": ("positive", "CONDITIONING"),
        "negative": ("negative", "CONDITIONING"),
        "latent_image": ("latent", "LATENT"),
    }
    if with_preference:
        links["preference"] = ("preference", "preference")
    return _node(kind, pos, (300, 0), {"seed": 7, "control_after_generate": "fixed", **widgets}, links, color=OURS)


def _output(samples: tuple[str, str], pos: tuple[int, int], prefix: str) -> dict[str, dict[str, Any]]:
    decode = _node("VAEDecode", pos, (210, 0), links={"samples": samples, "vae": ("checkpoint", "VAE")})
    save = _node(
        "SaveImage", (pos[0], pos[1] + 110), (340, 380), {"filename_prefix": prefix}, {"images": ("decode", "IMAGE")}
    )
    return {"decode": decode, "save": save}


def blend_two_adapters() -> dict[str, dict[str, Any]]:
    nodes = _common(
        "## Blend two adapters\n\n"
        "1. **Load Checkpoint**: pick your SD 1.5 checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two LoRAs made for it, lora_1 and lora_2. Any LoRA works: reward-tuned, a style, "
        "a character.\n"
        "3. Press **Run**.\n"
        "4. In **Preference Weights**, drag the dot on the line between the two adapters (or change weight_1 and weight_2) "
        "and run again. Only the sampling is done anew.\n"
        "5. **kl_scale** is the distance from the base model: 0 is the checkpoint alone, 1 the blend, beyond 1 exaggerates.\n\n"
        "Keep the seed fixed while you compare.\n\n"
        "For a checkpoint of another kind (SDXL, SD 3, ...) use LoRAs of that kind and set the latent's size to match."
    )
    nodes["sampler"] = _sampler("BlendedKSampler", (800, 100))
    return nodes | _output(("sampler", "latent"), (1160, 100), "blend")


def kl_scale_row() -> dict[str, dict[str, Any]]:
    nodes = _common(
        "## How far from the base model?\n\n"
        "The same seed at KL scale **0** (the checkpoint alone), **0.5**, **1** (as trained) and **1.5** (exaggerated), from "
        "left to right in one image.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick one LoRA as lora_1; with several, all count the same.\n"
        "3. Press **Run**.\n"
        "4. Take the KL scale you like into the other templates.\n\n"
        "To weigh several adapters, connect a **Preference Weights** to each sampler's preference input."
    )
    del nodes["preference"]
    nodes["latent"]["pos"] = [400, 430]
    for column, scale in enumerate((0.0, 0.5, 1.0, 1.5)):
        x = 800 + 320 * column
        nodes[f"sampler_{column}"] = _sampler("KLScaleSampler", (x, 100), with_preference=False, kl_scale=scale) | {
            "title": f"KL scale {scale:g}"
        }
        nodes[f"decode_{column}"] = _node(
            "VAEDecode",
            (x, 510),
            (210, 0),
            links={"samples": (f"sampler_{column}", "latent"), "vae": ("checkpoint", "VAE")},
        )
    row = "decode_0"
    for column in (1, 2, 3):
        nodes[f"stitch_{column}"] = _node(
            "ImageStitch",
            (800 + 320 * column, 620),
            (270, 0),
            {"direction": "right"},
            {"image1": (row, "IMAGE"), "image2": (f"decode_{column}", "IMAGE")},
        )
        row = f"stitch_{column}"
    nodes["save"] = _node(
        "SaveImage", (800, 830), (1230, 340), {"filename_prefix": "kl_scale_row"}, {"images": (row, "IMAGE")}
    )
    return nodes


def stochastic_blend_model() -> dict[str, dict[str, Any]]:
    nodes = _common(
        "## One model call per step\n\n"
        "**Blend Model** puts the blend on the model, so any sampler, guider or upscaler can use it. Its method here is "
        "**stochastic**: every step uses one adapter, drawn by the preference. That costs the same time as the checkpoint alone, "
        "however many adapters there are.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two or more LoRAs.\n"
        "3. Press **Run**.\n"
        "4. Compare with method **blend**: the same weights at one model call per adapter.\n\n"
        "**kl_scale** must stay between 0 and 1 here: an adapter cannot be drawn with a negative probability."
    )
    nodes["blend"] = _node(
        "BlendModel",
        (800, 100),
        (300, 0),
        {"method": "stochastic"},
        {
            "model": ("checkpoint", "MODEL"),
            "reward_loras": ("loras", "reward_loras"),
            "preference": ("preference", "preference"),
        },
        color=OURS,
    )
    nodes["guider"] = _node(
        "CFGGuider",
        (800, 340),
        (300, 0),
        {"cfg": 7.5},
        {
            "model": ("blend", "model"),
            "positive": ("positive", "CONDITIONING"),
            "negative": ("negative", "CONDITIONING"),
        },
    )
    nodes["noise"] = _node("RandomNoise", (800, 510), (300, 0), {"noise_seed": 7, "control_after_generate": "fixed"})
    nodes["which"] = _node("KSamplerSelect", (800, 640), (300, 0), {"sampler_name": "euler_ancestral"})
    nodes["sigmas"] = _node(
        "BasicScheduler", (800, 750), (300, 0), {"scheduler": "normal", "steps": 30}, {"model": ("blend", "model")}
    )
    nodes["sampler"] = _node(
        "SamplerCustomAdvanced",
        (1160, 100),
        (250, 0),
        links={
            "noise": ("noise", "NOISE"),
            "guider": ("guider", "GUIDER"),
            "sampler": ("which", "SAMPLER"),
            "sigmas": ("sigmas", "SIGMAS"),
            "latent_image": ("latent", "LATENT"),
        },
    )
    return nodes | _output(("sampler", "output"), (1160, 300), "stochastic")


TEMPLATES: dict[str, Template] = {
    "blend_two_adapters": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b01", "nodes": blend_two_adapters()},
    "kl_scale_row": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b02", "nodes": kl_scale_row()},
    "stochastic_blend_model": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b03", "nodes": stochastic_blend_model()},
}


def _pad(files: tuple[str, ...], x: int, weights: tuple[float, ...], kl_scale: float) -> dict[str, dict[str, Any]]:
    """A loader, out of the picture's way, and the Preference Weights it labels."""
    chosen = {f"lora_{number}": file for number, file in enumerate(files, start=1)}
    values = {f"weight_{number}": weight for number, weight in enumerate(weights, start=1)}
    links = {"reward_loras": (f"loras_{x}", "reward_loras")}
    return {
        f"loras_{x}": _node("LoadRewardLoRAs", (x, 540), (320, 0), chosen, color=OURS),
        f"preference_{x}": _node(
            "PreferenceWeights", (x, 100), (320, 0), values | {"kl_scale": kl_scale}, links, color=OURS
        ),
    }


_FILES = ("aesthetic.safetensors", "faithful.safetensors", "vivid.safetensors")
# Not a template: the help pages' picture of the three shapes of the pad.
PADS: Template = {
    "id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2bff",
    "nodes": _pad(_FILES[:2], 0, (0.35, 0.65, 0.0, 0.0), 1.0)
    | _pad(_FILES, 380, (0.2, 0.3, 0.5, 0.0), 0.6)
    | _pad((*_FILES, _FILES[0]), 760, (0.12, 0.18, 0.42, 0.28), 1.5),
}
