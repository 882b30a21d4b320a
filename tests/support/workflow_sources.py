"""What the templates of ``workflows/`` consist of; ``tests/browser/make_workflows.py`` builds them."""

from __future__ import annotations

from typing import Any, TypedDict

# The file ComfyUI's own first template asks for; the artist picks another if they have none of that name.
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
POSITIVE = "a lighthouse on a cliff at dusk, warm light in the windows, sea mist"
NEGATIVE = "blurry, low quality, watermark"
MINIATURE = ("softness", "compressibility", "alignment")
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


def try_it_no_downloads() -> dict[str, dict[str, Any]]:
    adapters = {"reward_loras": ("loras", "reward_loras")}
    chosen = {f"lora_{number}": f"miniature/{name}.safetensors" for number, name in enumerate(MINIATURE, start=1)}
    weights = {"weight_1": 0.4, "weight_2": 0.3, "weight_3": 0.3}
    nodes = {
        "note": _note(
            (-420, 100),
            (380, 480),
            "## Try it: no downloads\n\n"
            "A tiny model that comes with Diffusion Blend, and three adapters, each trained for one reward. It runs in seconds, "
            "also without a GPU.\n\n"
            "1. Press **Run**: sixteen small pictures of the prompt, enlarged.\n"
            "2. In **Preference Weights**, drag the dot into a corner of the triangle and run again: that adapter alone. Then "
            "somewhere in between.\n"
            "3. Drag the other handle, **kl_scale**: 0 is the model without adapters, beyond 1 exaggerates.\n"
            "4. Change the prompt: six colours (red, yellow, green, cyan, blue, purple), circles, squares and triangles, *two* "
            "or *three* of them, *above*, *below*, *left of*, *right of*, *and*.\n\n"
            "The seed is fixed, so what changes is the preference. With a checkpoint and LoRAs of your own, go on with the "
            "template **blend_two_adapters**.",
        ),
        "checkpoint": _node("LoadMiniature", (0, 100), (340, 0), {"batch_size": 16}, color=OURS),
        "loras": _node("LoadRewardLoRAs", (0, 280), (340, 0), chosen, color=OURS),
        "positive": _node(
            "CLIPTextEncode",
            (400, 100),
            (340, 90),
            {"text": "a red triangle above a cyan circle"},
            {"clip": ("checkpoint", "clip")},
        ),
        "negative": _node("CLIPTextEncode", (400, 250), (340, 70), {"text": ""}, {"clip": ("checkpoint", "clip")}),
        "preference": _node("PreferenceWeights", (400, 380), (340, 0), weights, adapters, color=OURS),
        "decode": _node(
            "VAEDecode", (1160, 100), (210, 0), links={"samples": ("sampler", "latent"), "vae": ("checkpoint", "vae")}
        ),
        "enlarge": _node(
            "ImageScale",
            (1160, 210),
            (300, 0),
            {"upscale_method": "nearest-exact", "width": 128, "height": 128, "crop": "disabled"},
            {"image": ("decode", "IMAGE")},
        ),
        "save": _node(
            "SaveImage", (1160, 420), (420, 420), {"filename_prefix": "miniature"}, {"images": ("enlarge", "IMAGE")}
        ),
    }
    sampler = _sampler("BlendedKSampler", (800, 100), steps=12, cfg=1.0)
    sampler["links"] |= {"model": ("checkpoint", "model"), "latent_image": ("checkpoint", "latent")}
    return nodes | {"sampler": sampler}


def triangle_of_three() -> dict[str, dict[str, Any]]:
    nodes = _common(
        "## A triangle of three\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick three LoRAs made for it.\n"
        "3. Press **Run**.\n"
        "4. In **Preference Weights**, drag the dot in the triangle: each corner is one adapter alone, the middle all three "
        "equally. Run again.\n\n"
        "A fourth LoRA makes the triangle a square. For all mixtures at once, see the template **sweep_with_pareto**."
    )
    nodes["preference"]["widgets"] = {"weight_1": 0.34, "weight_2": 0.33, "weight_3": 0.33}
    nodes["sampler"] = _sampler("BlendedKSampler", (800, 100))
    return nodes | _output(("sampler", "latent"), (1160, 100), "triangle")


def preference_schedule() -> dict[str, dict[str, Any]]:
    nodes = _common(
        "## One adapter for the composition, another for the detail\n\n"
        "**Preference Schedule** moves from one preference to another while the image is made. Early steps decide what is "
        "where, late ones how it looks.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two LoRAs.\n"
        "3. Press **Run**: the first adapter at the start, the second at the end.\n"
        "4. Swap the two preferences and compare, or let the change happen earlier (**end_percent**) or at once (curve "
        "*step*)."
    )
    del nodes["preference"]
    adapters = {"reward_loras": ("loras", "reward_loras")}
    nodes["start"] = _node(
        "PreferenceWeights", (400, 430), (340, 0), {"weight_1": 1.0, "weight_2": 0.0}, adapters, color=OURS
    ) | {"title": "At the start"}
    nodes["end"] = _node(
        "PreferenceWeights", (760, 430), (340, 0), {"weight_1": 0.0, "weight_2": 1.0}, adapters, color=OURS
    ) | {"title": "At the end"}
    nodes["preference"] = _node(
        "PreferenceSchedule",
        (800, 100),
        (300, 0),
        {"curve": "cosine"},
        {"preference_start": ("start", "preference"), "preference_end": ("end", "preference")},
        color=OURS,
    )
    nodes["sampler"] = _sampler("BlendedKSampler", (1160, 100))
    return nodes | _output(("sampler", "latent"), (1500, 100), "schedule")


def regional_preference() -> dict[str, dict[str, Any]]:
    nodes = _common(
        "## One look on the left, another on the right\n\n"
        "**Regional Preference** lets a preference of its own count inside a mask. The mixture is made for every latent pixel, "
        "at every step.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two LoRAs.\n"
        "3. Press **Run**: the first adapter on the left, the second on the right.\n"
        "4. Take any mask instead of this one: paint it in **Load Image** (right click, mask editor), or make it with a "
        "segmentation node. **feather** softens its edge.\n\n"
        "It works with the samplers that blend (**Blended KSampler**, **KL Scale Sampler**, **Blend Model** with method blend)."
    )
    del nodes["preference"]
    adapters = {"reward_loras": ("loras", "reward_loras")}
    nodes["left"] = _node(
        "PreferenceWeights", (400, 430), (340, 0), {"weight_1": 1.0, "weight_2": 0.0}, adapters, color=OURS
    ) | {"title": "Everywhere else"}
    nodes["right"] = _node(
        "PreferenceWeights", (760, 430), (340, 0), {"weight_1": 0.0, "weight_2": 1.0}, adapters, color=OURS
    ) | {"title": "Inside the mask"}
    nodes["nothing"] = _node("SolidMask", (0, 800), (260, 0), {"value": 0.0, "width": 512, "height": 512})
    nodes["half"] = _node("SolidMask", (0, 950), (260, 0), {"value": 1.0, "width": 256, "height": 512})
    nodes["mask"] = _node(
        "MaskComposite",
        (300, 900),
        (260, 0),
        {"x": 256, "y": 0, "operation": "add"},
        {"destination": ("nothing", "MASK"), "source": ("half", "MASK")},
    )
    nodes["preference"] = _node(
        "RegionalPreference",
        (800, 100),
        (300, 0),
        {"feather": 32},
        {
            "preference": ("left", "preference"),
            "regional_preference": ("right", "preference"),
            "mask": ("mask", "MASK"),
        },
        color=OURS,
    )
    nodes["sampler"] = _sampler("BlendedKSampler", (1160, 100))
    return nodes | _output(("sampler", "latent"), (1500, 100), "regional")


def any_two_style_loras() -> dict[str, dict[str, Any]]:
    nodes = _common(
        "## Two styles, five mixtures in a row\n\n"
        "Any LoRA can be blended, not only reward-tuned ones. **Preference Sweep** goes from the first to the second in five "
        "steps, with the same seed, and **Preference Grid** puts the images in a row.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two style LoRAs made for it.\n"
        "3. Press **Run**. Take the mixture you like into **blend_two_adapters**.\n\n"
        "**Blend Probe** says whether the blend differs here from plainly stacking the two LoRAs."
    )
    del nodes["preference"]
    nodes["sweep"] = _node(
        "PreferenceSweep", (400, 430), (340, 0), None, {"reward_loras": ("loras", "reward_loras")}, color=OURS
    )
    nodes["sampler"] = _sampler("BlendedKSampler", (800, 100), with_preference=False)
    nodes["sampler"]["links"]["preference"] = ("sweep", "preferences")
    nodes["decode"] = _node(
        "VAEDecode", (800, 560), (210, 0), links={"samples": ("sampler", "latent"), "vae": ("checkpoint", "VAE")}
    )
    nodes |= _grid((1160, 100), {"images": ("decode", "IMAGE")})
    nodes["save"] = _node(
        "SaveImage", (1520, 100), (620, 300), {"filename_prefix": "styles"}, {"images": ("grid", "sheet")}
    )
    return nodes


def sweep_with_pareto() -> dict[str, dict[str, Any]]:
    """Over the miniature, so that it runs as it is."""
    nodes = try_it_no_downloads()
    for name in ("preference", "enlarge", "save"):
        del nodes[name]
    nodes["note"] = _note(
        (-420, 100),
        (380, 480),
        "## All mixtures of three adapters, and which are worth having\n\n"
        "**Preference Sweep** makes fifteen preferences over the triangle; everything after it runs once for each, with the same "
        "noise. **Preference Grid** lays the images out as a triangle and, because they are scored, draws a Pareto figure: the "
        "marked images are those that no other beats in both rewards.\n\n"
        "1. Press **Run**. It needs no downloads: the model is the miniature that comes with Diffusion Blend.\n"
        "2. Choose other rewards in **Load Reward Model**, or another sweep: a row of KL scales, a line.\n"
        "3. With a checkpoint and LoRAs of your own, replace **Load Miniature** by Load Checkpoint and an empty latent.",
    )
    nodes["sweep"] = _node(
        "PreferenceSweep", (400, 380), (340, 0), None, {"reward_loras": ("loras", "reward_loras")}, color=OURS
    )
    nodes["sampler"]["links"]["preference"] = ("sweep", "preferences")
    nodes["decode"]["pos"] = [800, 560]
    text = "a red triangle above a cyan circle"
    scores: tuple[str, str] | None = None
    for number, reward in enumerate(("softness", "alignment")):
        x = 1160 + 320 * number
        nodes[f"reward_{reward}"] = _node(
            "LoadRewardModel", (x, 100), (290, 0), {"reward": f"miniature.{reward}"}, color=OURS
        )
        links = {"images": ("decode", "IMAGE"), "reward_model": (f"reward_{reward}", "reward_model")}
        if scores is not None:
            links["scores"] = scores
        nodes[f"score_{reward}"] = _node("ScoreImages", (x, 270), (290, 200), {"prompt": text}, links, color=OURS)
        scores = (f"score_{reward}", "scores")
    assert scores is not None
    nodes |= _grid((1160, 560), {"images": ("decode", "IMAGE"), "scores": scores}, thumbnail_size=128)
    nodes["save"] = _node(
        "SaveImage", (1800, 100), (460, 460), {"filename_prefix": "sweep"}, {"images": ("grid", "sheet")}
    )
    nodes["save_pareto"] = _node(
        "SaveImage", (1800, 620), (460, 460), {"filename_prefix": "pareto"}, {"images": ("grid", "pareto")}
    )
    return nodes


def blend_probe() -> dict[str, dict[str, Any]]:
    """Not a template: the help page's picture."""
    nodes = try_it_no_downloads()
    for name in ("note", "sampler", "decode", "enlarge", "save"):
        del nodes[name]
    links = {
        "model": ("checkpoint", "model"),
        "reward_loras": ("loras", "reward_loras"),
        "preference": ("preference", "preference"),
        "positive": ("positive", "CONDITIONING"),
        "negative": ("negative", "CONDITIONING"),
        "latent_image": ("checkpoint", "latent"),
    }
    nodes["probe"] = _node("BlendProbe", (800, 100), (300, 0), {"steps": 12, "cfg": 1.0}, links, color=OURS)
    nodes["figure"] = _node("PreviewImage", (1160, 100), (360, 300), links={"images": ("probe", "figure")})
    nodes["verdict"] = _node("PreviewAny", (1160, 450), (360, 120), links={"source": ("probe", "verdict")})
    return nodes


def _grid(pos: tuple[int, int], links: dict[str, tuple[str, str]], **widgets: Any) -> dict[str, dict[str, Any]]:
    links = links | {
        "preferences": ("sweep", "preferences"),
        "labels": ("sweep", "labels"),
        "reward_loras": ("loras", "reward_loras"),
    }
    return {"grid": _node("PreferenceGrid", pos, (320, 0), widgets, links, color=OURS)}


TEMPLATES: dict[str, Template] = {
    "try_it_no_downloads": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b00", "nodes": try_it_no_downloads()},
    "blend_two_adapters": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b01", "nodes": blend_two_adapters()},
    "kl_scale_row": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b02", "nodes": kl_scale_row()},
    "triangle_of_three": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b04", "nodes": triangle_of_three()},
    "preference_schedule": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b05", "nodes": preference_schedule()},
    "regional_preference": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b06", "nodes": regional_preference()},
    "any_two_style_loras": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b07", "nodes": any_two_style_loras()},
    "sweep_with_pareto": {"id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b08", "nodes": sweep_with_pareto()},
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
