"""Sources of the templates in ``workflows/``; ``tools/make_workflows.py`` builds them."""

from __future__ import annotations

from workflow_more import keep_this_blend_as_one_lora, two_style_loras_with_their_words
from workflow_parts import (
    IDS,
    LEFT,
    MINIATURE,
    MINIATURE_PROMPT,
    OURS,
    PREFERENCE,
    Nodes,
    Template,
    common,
    grid,
    node,
    on_miniature,
    output,
    preference,
    sampler,
)
from workflow_taste import find_my_taste_no_downloads


def try_it_no_downloads() -> Template:
    text = (
        "## Try it: no downloads\n\n"
        "A tiny model and its adapters, each trained for one reward, come with Diffusion Blend. It runs without a GPU.\n\n"
        "1. Press **Run** (top right): nine small pictures of the prompt.\n"
        "2. In **Preference Weights** drag the **violet dot** into a corner of the triangle: that adapter alone. **Run** again.\n"
        "3. Drag it somewhere in between. **Run** again: a blend.\n"
        "4. Drag the **red dot** (KL scale): 0 is the model without adapters, beyond 1 exaggerates.\n"
        "5. Change the prompt: red, yellow, green, cyan, blue, purple; circle, square, triangle; *two* or *three* of them; "
        "*above*, *below*, *left of*, *right of*, *and*.\n\n"
        "The seed is fixed: what changes is the preference. "
        "About one picture in twelve does not show the prompt: so small a model miscounts.\n\n"
        "With your own checkpoint and LoRAs, go on with **2 Blend two LoRAs**."
    )
    nodes = common(text) | {"sampler": sampler("BlendedKSampler", steps=12, cfg=2.0)} | output("miniature", height=430)
    nodes = on_miniature(nodes | {"preference": preference((0.34, 0.33, 0.33))})
    nodes["enlarge"] = node(
        "ImageScale",
        {"upscale_method": "nearest-exact", "width": 128, "height": 128, "crop": "disabled"},
        {"image": ("decode", "IMAGE")},
    )
    nodes["save"]["links"] = {"images": ("enlarge", "IMAGE")}
    columns = [
        (290, ["note"]),
        (350, ["checkpoint", "loras"]),
        PREFERENCE,
        (280, ["sampler", "decode", "enlarge"]),
        (380, ["save"]),
    ]
    return {"id": IDS.format(0), "nodes": nodes, "columns": columns}


def blend_two_adapters() -> Template:
    nodes = common(
        "## Blend two adapters\n\n"
        "1. **Load Checkpoint**: pick your SD 1.5 checkpoint.\n"
        "2. **Load Reward LoRAs**: click a row to pick a LoRA made for it, and add a second. Any LoRA works: "
        "reward-tuned, a style, a character.\n"
        "3. Press **Run**.\n"
        "4. In **Preference Weights** drag the **violet dot** along the line between the two and run again.\n"
        "5. Drag the **red dot** (KL scale): 0 is the checkpoint alone, 1 the blend, beyond 1 exaggerates.\n\n"
        "The seed is fixed, so that only the preference changes the image.\n\n"
        "For another kind of checkpoint (SDXL, SD 3, ...) use LoRAs of that kind and set the latent's size to match.",
    )
    nodes["sampler"] = sampler("BlendedKSampler")
    nodes |= output("blend")
    columns = [*LEFT, PREFERENCE, (280, ["sampler", "decode"]), (400, ["save"])]
    return {"id": IDS.format(1), "nodes": nodes, "columns": columns}


def kl_scale_row() -> Template:
    nodes = common(
        "## How far from the base model?\n\n"
        "The same image at KL scale **0** (the checkpoint alone), **0.5**, **1** (as trained) and **1.5** (exaggerated), side "
        "by side on one sheet.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick one LoRA or more; they count the same.\n"
        "3. Press **Run**: it samples four times, with the same seed.\n"
        "4. **Preference Sweep** says from where to where, and in how many steps.\n\n"
        "Take the KL scale you like into **Preference Weights** of the other templates, or into **KL Scale Sampler**, which has "
        "it as a number of its own.",
    )
    del nodes["preference"]
    nodes |= _swept({"kind": "kl scales", "points": 4, "kl_scale_from": 0.0, "kl_scale_to": 1.5}, "kl_scale_row")
    return {"id": IDS.format(2), "nodes": nodes, "columns": _SWEPT}


def stochastic_blend_model() -> Template:
    nodes = common(
        "## One model call per step\n\n"
        "**Blend Model** puts the blend on the model, for any sampler, guider or upscaler. Its method here is **stochastic**: "
        "every step uses one adapter, drawn by the preference. That takes the checkpoint's own time, however many adapters there "
        "are.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two or more LoRAs.\n"
        "3. Press **Run**.\n"
        "4. Set the method to **blend** and compare: the same weights at one model call per adapter.\n\n"
        "The KL scale must stay between 0 and 1 here: an adapter cannot be drawn with a negative probability.",
    )
    nodes["blend"] = node(
        "BlendModel",
        {"method": "stochastic"},
        {
            "model": ("checkpoint", "MODEL"),
            "reward_loras": ("loras", "reward_loras"),
            "preference": ("preference", "preference"),
        },
        color=OURS,
    )
    guided = {
        "model": ("blend", "model"),
        "positive": ("positive", "CONDITIONING"),
        "negative": ("negative", "CONDITIONING"),
    }
    nodes["guider"] = node("CFGGuider", {"cfg": 7.5}, guided)
    nodes["noise"] = node("RandomNoise", {"noise_seed": 7, "control_after_generate": "fixed"})
    nodes["which"] = node("KSamplerSelect", {"sampler_name": "euler_ancestral"})
    nodes["sigmas"] = node("BasicScheduler", {"scheduler": "normal", "steps": 30}, {"model": ("blend", "model")})
    sources = {"noise": "NOISE", "guider": "GUIDER", "sigmas": "SIGMAS"}
    links = {name: (name, slot) for name, slot in sources.items()}
    links |= {"sampler": ("which", "SAMPLER"), "latent_image": ("latent", "LATENT")}
    nodes["sampler"] = node("SamplerCustomAdvanced", links=links)
    nodes |= output("stochastic", ("sampler", "output"), 420)
    columns = [
        *LEFT,
        PREFERENCE,
        (280, ["blend", "guider", "noise", "which", "sigmas"]),
        (400, ["sampler", "decode", "save"]),
    ]
    return {"id": IDS.format(3), "nodes": nodes, "columns": columns}


def triangle_of_three() -> Template:
    nodes = common(
        "## A triangle of three\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick three LoRAs made for it.\n"
        "3. Press **Run**.\n"
        "4. In **Preference Weights** drag the **violet dot** in the triangle: each corner is one adapter alone, the middle all "
        "three equally. Run again.\n\n"
        "A fourth LoRA makes the triangle a square. For all mixtures at once, see the template "
        "**6 All mixtures of three, scored**.",
    )
    nodes["preference"] = preference((0.34, 0.33, 0.33))
    nodes["sampler"] = sampler("BlendedKSampler")
    nodes |= output("triangle")
    columns = [*LEFT, PREFERENCE, (280, ["sampler", "decode"]), (400, ["save"])]
    return {"id": IDS.format(4), "nodes": nodes, "columns": columns}


def preference_schedule() -> Template:
    nodes = common(
        "## One adapter for the composition, another for the detail\n\n"
        "**Preference Schedule** moves from one preference to another while the image is made. Early steps decide what is "
        "where, late ones how it looks.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two LoRAs.\n"
        "3. Press **Run**: the first adapter at the start, the second at the end.\n"
        "4. Swap the two (drag both violet dots) and compare; or let the change be over earlier (**end_percent**), or come at "
        "once (curve *step*).",
    )
    nodes["start"] = preference((1.0, 0.0), "At the start")
    nodes["end"] = preference((0.0, 1.0), "At the end")
    ends = {"preference_start": ("start", "preference"), "preference_end": ("end", "preference")}
    nodes["preference"] = node("PreferenceSchedule", {"curve": "cosine"}, ends, color=OURS)
    nodes["sampler"] = sampler("BlendedKSampler")
    nodes |= output("schedule")
    columns = [
        (300, ["note"]),
        (300, ["checkpoint", "loras", "positive", "negative", "latent"]),
        (300, ["start", "end"]),
        (280, ["preference", "sampler", "decode"]),
        (400, ["save"]),
    ]
    return {"id": IDS.format(5), "nodes": nodes, "columns": columns}


def regional_preference() -> Template:
    nodes = common(
        "## One look on the left, another on the right\n\n"
        "**Regional Preference** lets a preference of its own count inside a mask, mixed for every pixel of the latent at "
        "every step.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two LoRAs.\n"
        "3. Press **Run**: the first adapter on the left, the second on the right.\n"
        "4. Take any mask instead of this one: paint it in **Load Image** (right click, mask editor), or use a segmentation "
        "node. **feather** softens its edge.\n\n"
        "For **Blended KSampler**, **KL Scale Sampler** and **Blend Model** (method blend).",
    )
    nodes["left"] = preference((1.0, 0.0), "Everywhere else")
    nodes["right"] = preference((0.0, 1.0), "Inside the mask")
    nodes["nothing"] = node("SolidMask", {"value": 0.0, "width": 512, "height": 512}, title="Mask: black")
    nodes["half"] = node("SolidMask", {"value": 1.0, "width": 256, "height": 512}, title="Mask: white, half as wide")
    parts = {"destination": ("nothing", "MASK"), "source": ("half", "MASK")}
    nodes["mask"] = node("MaskComposite", {"x": 256, "y": 0, "operation": "add"}, parts)
    links = {
        "preference": ("left", "preference"),
        "regional_preference": ("right", "preference"),
        "mask": ("mask", "MASK"),
    }
    nodes["preference"] = node("RegionalPreference", {"feather": 32}, links, color=OURS)
    nodes["sampler"] = sampler("BlendedKSampler")
    nodes |= output("regional", height=340)
    columns = [
        (300, ["note"]),
        (300, ["checkpoint", "loras", "positive", "negative", "latent"]),
        (300, ["left", "right"]),
        (270, ["nothing", "half", "mask", "preference"]),
        (340, ["sampler", "decode", "save"]),
    ]
    return {"id": IDS.format(6), "nodes": nodes, "columns": columns}


def any_two_style_loras() -> Template:
    nodes = common(
        "## Two styles, five mixtures in a row\n\n"
        "Any LoRA can be blended, not only reward-tuned ones. **Preference Sweep** goes from the first to the second in five "
        "steps, with the same seed, and **Preference Grid** puts the images in a row.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two style LoRAs made for it.\n"
        "3. Press **Run**: it samples five times.\n"
        "4. Take the mixture you like into **2 Blend two LoRAs**.\n\n"
        "Is it worth it? **Blend Probe** says whether the blend differs here from plainly stacking the two.",
    )
    del nodes["preference"]
    nodes |= _swept({}, "styles")
    return {"id": IDS.format(7), "nodes": nodes, "columns": _SWEPT}


_SWEPT = [*LEFT, (300, ["positive", "negative", "sweep"]), (280, ["sampler", "decode", "grid"]), (450, ["save"])]


def _swept(sweep: dict[str, str | int | float], prefix: str) -> Nodes:
    """Make a graph that sweeps, samples and draws a sheet."""
    adapters = {"reward_loras": ("loras", "reward_loras")}
    nodes = {
        "sweep": node("PreferenceSweep", sweep, adapters, color=OURS),
        "sampler": sampler("BlendedKSampler", False),
    }
    nodes["sampler"]["links"]["preference"] = ("sweep", "preferences")
    nodes |= output(prefix, height=330)
    nodes["grid"] = grid({"images": ("decode", "IMAGE")})
    nodes["save"]["links"] = {"images": ("grid", "sheet")}
    return nodes


def sweep_with_pareto() -> Template:
    """Make the graph on the miniature, so that it runs without other files."""
    text = (
        "## All mixtures of three adapters, and which are worth having\n\n"
        "**Preference Sweep** makes fifteen preferences over the triangle; everything after it runs once for each, with the "
        "same noise. **Preference Grid** lays the images out as a triangle and, because they are scored, draws a Pareto figure: "
        "framed are the images that no other beats in both rewards.\n\n"
        "1. Press **Run**. Nothing is downloaded: the model is the miniature that comes with Diffusion Blend.\n"
        "2. Choose other rewards in **Load Reward Model**, or another sweep: a row of KL scales, a line.\n"
        "3. For your own checkpoint and LoRAs put Load Checkpoint and an empty latent in the place of **Load Miniature**."
    )
    nodes = on_miniature(common(text) | _swept({}, "sweep"))
    del nodes["preference"]
    nodes["checkpoint"]["widgets"] = {"batch_size": 4}
    nodes["sampler"]["widgets"] |= {"steps": 12, "cfg": 2.0}
    nodes["prompt"] = node("PrimitiveStringMultiline", {"value": MINIATURE_PROMPT}, height=90, title="Prompt")
    nodes["positive"]["links"]["text"] = ("prompt", "STRING")
    scores: tuple[str, str] | None = None
    for reward in (MINIATURE[0], MINIATURE[-1]):
        nodes[f"reward_{reward}"] = node("LoadRewardModel", {"reward": f"miniature.{reward}"}, color=OURS)
        links = {
            "images": ("decode", "IMAGE"),
            "reward_model": (f"reward_{reward}", "reward_model"),
            "prompt": ("prompt", "STRING"),
        }
        if scores is not None:
            links["scores"] = scores
        nodes[f"score_{reward}"] = node("ScoreImages", {"prompt": MINIATURE_PROMPT}, links, color=OURS)
        scores = (f"score_{reward}", "scores")
    assert scores is not None
    nodes["grid"] = grid({"images": ("decode", "IMAGE"), "scores": scores}, thumbnail_size=128)
    nodes["save"]["height"] = 300
    nodes["save_pareto"] = node("SaveImage", {"filename_prefix": "pareto"}, {"images": ("grid", "pareto")}, 270)
    first, second = MINIATURE[0], MINIATURE[-1]
    columns = [
        (280, ["note"]),
        (350, ["checkpoint", "loras", "prompt", "sweep"]),
        (270, ["positive", "negative", "sampler", "decode"]),
        (270, [f"reward_{first}", f"score_{first}", f"reward_{second}", f"score_{second}"]),
        (360, ["grid", "save", "save_pareto"]),
    ]
    return {"id": IDS.format(8), "nodes": nodes, "columns": columns}


TITLES = {
    "try_it_no_downloads": "1 Try it - no downloads",
    "blend_two_adapters": "2 Blend two LoRAs",
    "triangle_of_three": "3 Blend three LoRAs",
    "any_two_style_loras": "4 Two styles, five mixtures",
    "kl_scale_row": "5 Weaker and stronger in a row",
    "sweep_with_pareto": "6 All mixtures of three, scored",
    "preference_schedule": "7 One LoRA early, another late",
    "regional_preference": "8 One LoRA left, another right",
    "stochastic_blend_model": "9 Fast - one LoRA a step",
    "app_try_it": "App 1 Try it - no downloads",
    "app_two_loras": "App 2 Two LoRAs and a pad",
    "find_my_taste_no_downloads": "Find my taste - no downloads",
    "keep_this_blend_as_one_lora": "Keep this blend as one LoRA",
    "two_style_loras_with_their_words": "Two style LoRAs with their words",
}
"""The file names, which the templates window shows. The others are of earlier versions, and stay in code."""


def app_try_it() -> Template:
    shown = [("positive", "text"), ("preference", "preference_pad"), ("sampler", "seed")]
    return _as_app(try_it_no_downloads(), 9, shown)


def app_two_loras() -> Template:
    shown = [
        ("checkpoint", "ckpt_name"),
        ("loras", "lora_rows"),
        ("positive", "text"),
        ("preference", "preference_pad"),
        ("sampler", "seed"),
    ]
    return _as_app(blend_two_adapters(), 10, shown)


def _as_app(graph: Template, number: int, shown: list[tuple[str, str]]) -> Template:
    """Make a template that opens in App mode with these widgets and its saved pictures."""
    return {
        "id": IDS.format(number),
        "nodes": graph["nodes"],
        "columns": graph["columns"],
        "app": {"inputs": shown, "outputs": ["save"]},
    }


TEMPLATES: dict[str, Template] = {
    made.__name__: made()
    for made in (
        try_it_no_downloads,
        blend_two_adapters,
        kl_scale_row,
        triangle_of_three,
        preference_schedule,
        regional_preference,
        any_two_style_loras,
        sweep_with_pareto,
        stochastic_blend_model,
        app_try_it,
        app_two_loras,
        find_my_taste_no_downloads,
        keep_this_blend_as_one_lora,
        two_style_loras_with_their_words,
    )
}
