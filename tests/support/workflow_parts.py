"""Parts of the templates in ``workflow_sources``: nodes, notes, columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

CHECKOUT = Path(__file__).resolve().parents[2]
# The file of ComfyUI's own first template. Artists without a file of that name choose another.
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
# The address that ComfyUI's own first graph has for it: the front end offers the download where the file is missing.
CHECKPOINT_SOURCE = {
    "name": CHECKPOINT,
    "url": f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}",
    "directory": "checkpoints",
}
POSITIVE = "a lighthouse on a cliff at dusk, warm light in the windows, sea mist"
NEGATIVE = "blurry, low quality, watermark"
MINIATURE = ("brightness", "warmth", "colourfulness")
"""The adapters of the templates: those whose effect is seen at once."""
MINIATURE_PROMPT = "a red triangle and a cyan circle"
NOTE = ["#432", "#653"]
OURS = ["#233", "#355"]
IDS = "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b{:02x}"
"""The templates' ids."""
LEFT: list[tuple[int, list[str]]] = [(300, ["note"]), (300, ["checkpoint", "loras", "latent"])]
PREFERENCE = (300, ["positive", "negative", "preference"])
"""Columns that many templates begin with."""


Nodes = dict[str, dict[str, Any]]


class _Shown(TypedDict):
    inputs: list[tuple[str, str]]
    outputs: list[str]


class App(_Shown, total=False):
    """A graph in App mode.

    Args:
        inputs: the widgets that it shows, by node and name.
        outputs: the nodes whose pictures it shows. Without any, the front end shows no widget either.
        opens: the graph opens in App mode; that is so where it is left out. Otherwise the menu switches to it.
    """

    opens: bool


class _Graph(TypedDict):
    """A graph in columns.

    Args:
        id: the workflow's UUID.
        nodes: by names that only the source uses.
        columns: from left to right, each with its width and the names of its nodes from the top. Columns are narrow,
            because the front end shows the whole template, and below a zoom of 57 % the classic canvas draws no text.
    """

    id: str
    nodes: Nodes
    columns: list[tuple[int, list[str]]]


class Template(_Graph, total=False):
    """A graph, or one that opens in App mode."""

    app: App


def node(
    kind: str,
    widgets: dict[str, Any] | None = None,
    links: dict[str, tuple[str, str]] | None = None,
    height: int = 0,
    **other: Any,
) -> dict[str, Any]:
    """Make a node at least ``height`` high."""
    return {"type": kind, "height": height, "widgets": widgets or {}, "links": links or {}, **other}


def note(text: str) -> dict[str, Any]:
    """Make a note whose height fits its text in a column of 300, in the renderer with the larger letters."""
    lines = sum(1.5 if line.startswith("#") else 0.6 if not line else -(-len(line) // 38) for line in text.splitlines())
    return node("MarkdownNote", {"text": text}, height=round(60 + 16 * lines), title="Read me", color=NOTE)


def miniature_loras(count: int) -> dict[str, Any]:
    """Make a Load Reward LoRAs with the shipped adapters."""
    chosen = {f"lora_{i}": f"miniature/{name}.safetensors" for i, name in enumerate(MINIATURE[:count], start=1)}
    return node("LoadRewardLoRAs", chosen, color=OURS)


def preference(weights: tuple[float, ...] = (), title: str | None = None) -> dict[str, Any]:
    """Make a Preference Weights after "loras"."""
    values = {f"weight_{i}": weight for i, weight in enumerate(weights, start=1)}
    made = node("PreferenceWeights", values, {"reward_loras": ("loras", "reward_loras")}, color=OURS)
    return made if title is None else made | {"title": title}


def common(text: str) -> Nodes:
    """Make a note, checkpoint, adapters, prompts, empty latent and preference."""
    return {
        "note": note(text),
        "checkpoint": node("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}, models=[CHECKPOINT_SOURCE]),
        "loras": node("LoadRewardLoRAs", color=OURS),
        "latent": node("EmptyLatentImage", {"width": 512, "height": 512}),
        "positive": node("CLIPTextEncode", {"text": POSITIVE}, {"clip": ("checkpoint", "CLIP")}, 110),
        "negative": node("CLIPTextEncode", {"text": NEGATIVE}, {"clip": ("checkpoint", "CLIP")}, 80),
        "preference": preference(),
    }


def sampler(kind: str, with_preference: bool = True, **widgets: Any) -> dict[str, Any]:
    links = {
        "model": ("checkpoint", "MODEL"),
        "reward_loras": ("loras", "reward_loras"),
        "positive": ("positive", "CONDITIONING"),
        "negative": ("negative", "CONDITIONING"),
        "latent_image": ("latent", "LATENT"),
    }
    if with_preference:
        links["preference"] = ("preference", "preference")
    return node(kind, {"seed": 7, "control_after_generate": "fixed", **widgets}, links, color=OURS)


def output(prefix: str, samples: tuple[str, str] = ("sampler", "latent"), height: int = 560) -> Nodes:
    """Make the nodes that decode and save."""
    return {
        "decode": node("VAEDecode", links={"samples": samples, "vae": ("checkpoint", "VAE")}),
        "save": node("SaveImage", {"filename_prefix": prefix}, {"images": ("decode", "IMAGE")}, height),
    }


def on_miniature(nodes: Nodes, adapters: int = 3) -> Nodes:
    """Return the graph on the miniature, with its latent and this number of its adapters."""
    renamed = {"MODEL": "model", "CLIP": "clip", "VAE": "vae"}
    made = {}
    for key, item in nodes.items():
        links = {
            name: ("checkpoint", "latent")
            if source == "latent"
            else (source, renamed.get(slot, slot) if source == "checkpoint" else slot)
            for name, (source, slot) in item["links"].items()
        }
        made[key] = item | {"links": links}
    del made["latent"]
    made["checkpoint"] = node("LoadMiniature", {"batch_size": 9}, color=OURS)
    made["loras"] = miniature_loras(adapters)
    made["positive"]["widgets"] = {"text": MINIATURE_PROMPT}
    made["negative"]["widgets"] = {"text": ""}
    return made


def grid(links: dict[str, tuple[str, str]], **widgets: Any) -> dict[str, Any]:
    """Make a Preference Grid after "sweep"."""
    links = links | {
        "preferences": ("sweep", "preferences"),
        "labels": ("sweep", "labels"),
        "reward_loras": ("loras", "reward_loras"),
    }
    return node("PreferenceGrid", widgets, links, color=OURS)
