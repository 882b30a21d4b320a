"""Sources of the templates for text encoders and for baking."""

from __future__ import annotations

from workflow_parts import IDS, LEFT, OURS, PREFERENCE, Template, common, node, output, preference, sampler


def two_style_loras_with_their_words() -> Template:
    nodes = common(
        "## Two style LoRAs with their words\n\n"
        "Many style and character LoRAs also change the text encoder, and have words of their own. **Blend Text Encoder** lets "
        "each LoRA read the prompt with its own text encoder, as Load LoRA does for a single one.\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick two style LoRAs made for it.\n"
        "3. Write the words of both into the upper prompt. Each LoRA listens to its own.\n"
        "4. Press **Run**. Blend Text Encoder names the files that have text-encoder weights. If none has any, it changes "
        "nothing.\n"
        "5. Drag the **violet dot** in **Preference Weights** and run again.\n\n"
        "For the method *soup* of **Blend Model**, connect the preference to Blend Text Encoder, too.",
    )
    links = {"clip": ("checkpoint", "CLIP"), "reward_loras": ("loras", "reward_loras")}
    nodes["texts"] = node("BlendTextEncoder", {}, links, color=OURS)
    for name in ("positive", "negative"):
        nodes[name]["links"] = {"clip": ("texts", "clip")}
    nodes["positive"]["widgets"]["text"] += ", in the style of WORD ONE, WORD TWO"
    nodes["sampler"] = sampler("BlendedKSampler")
    nodes |= output("words")
    columns = [
        (300, ["note"]),
        (300, ["checkpoint", "loras", "texts", "latent"]),
        PREFERENCE,
        (280, ["sampler", "decode"]),
        (400, ["save"]),
    ]
    return {"id": IDS.format(13), "nodes": nodes, "columns": columns}


def keep_this_blend_as_one_lora() -> Template:
    nodes = common(
        "## Keep this blend as one LoRA\n\n"
        "1. **Load Checkpoint**: pick your checkpoint.\n"
        "2. **Load Reward LoRAs**: pick the LoRAs that you blended.\n"
        "3. **Preference Weights**: the weights that you like.\n"
        "4. **Bake Blend**: give the new file a name. It goes into the loras folder. A name that is taken gets a number.\n"
        "5. Press **Run**: the file is written, and the picture is made with it alone.\n\n"
        "Use the new file with ComfyUI's own **Load LoRA** at strength 1 (press **R** to see it in the list), in A1111 or in "
        "diffusers. It costs one model call per step.\n\n"
        "The file adds up the LoRAs' weights (the method *soup*). **Blend Probe** says how near that is to the blend.",
    )
    nodes["bake"] = node(
        "BakeBlend",
        {"filename": "my_blend"},
        {
            "model": ("checkpoint", "MODEL"),
            "reward_loras": ("loras", "reward_loras"),
            "preference": ("preference", "preference"),
        },
        color=OURS,
    )
    nodes["report"] = node("PreviewAny", links={"source": ("bake", "report")}, height=110)
    nodes["alone"] = preference((1.0, 0.0), title="The new LoRA alone")
    nodes["alone"]["links"] = {"reward_loras": ("bake", "reward_loras")}
    nodes["sampler"] = sampler("BlendedKSampler")
    nodes["sampler"]["links"] |= {"reward_loras": ("bake", "reward_loras"), "preference": ("alone", "preference")}
    nodes |= output("one_lora", height=300)
    columns = [*LEFT, PREFERENCE, (280, ["bake", "alone"]), (330, ["report", "sampler", "decode", "save"])]
    nodes["save"]["height"] = 230
    return {"id": IDS.format(12), "nodes": nodes, "columns": columns}
