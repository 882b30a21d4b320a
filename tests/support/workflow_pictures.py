"""Graphs for the help pages' pictures. They are no templates."""

from __future__ import annotations

from workflow_parts import OURS, Nodes, Template, node, preference
from workflow_sources import try_it_no_downloads

_IDS = "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2b{}"
_FILES = ("aesthetic.safetensors", "faithful.safetensors", "vivid.safetensors")


def blend_probe() -> Template:
    nodes = try_it_no_downloads()["nodes"]
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
    nodes["probe"] = node(
        "BlendProbe", {"seed": 7, "control_after_generate": "fixed", "steps": 12, "cfg": 2.0}, links, color=OURS
    )
    nodes["figure"] = node("PreviewImage", links={"images": ("probe", "figure")}, height=300)
    nodes["verdict"] = node("PreviewAny", links={"source": ("probe", "verdict")}, height=210)
    columns = [
        (350, ["checkpoint", "loras"]),
        (300, ["positive", "negative", "preference"]),
        (280, ["probe"]),
        (400, ["figure", "verdict"]),
    ]
    return {"id": _IDS.format("fe"), "nodes": nodes, "columns": columns}


def kl_scale_sampler() -> Template:
    """Make the sampler after its adapters."""
    nodes: Nodes = {
        "loras": node("LoadRewardLoRAs", {"lora_1": _FILES[0]}, color=OURS),
        "sampler": node(
            "KLScaleSampler",
            {"seed": 7, "control_after_generate": "fixed", "kl_scale": 1.5},
            {"reward_loras": ("loras", "reward_loras")},
            color=OURS,
        ),
    }
    return {"id": _IDS.format("fd"), "nodes": nodes, "columns": [(300, ["loras"]), (300, ["sampler"])]}


def regional() -> Template:
    """Make a graph of two preferences and a mask."""
    ends = {
        "preference": ("left", "preference"),
        "regional_preference": ("right", "preference"),
        "mask": ("mask", "MASK"),
    }
    nodes: Nodes = {
        "loras": node("LoadRewardLoRAs", {f"lora_{i}": file for i, file in enumerate(_FILES[:2], 1)}, color=OURS),
        "left": preference((1.0, 0.0), "Everywhere else"),
        "right": preference((0.0, 1.0), "Inside the mask"),
        "mask": node("SolidMask", {"width": 512, "height": 512}, title="Any mask"),
        "region": node("RegionalPreference", {"feather": 32}, ends, color=OURS),
    }
    columns = [(300, ["loras", "mask"]), (300, ["left", "right"]), (300, ["region"])]
    return {"id": _IDS.format("fc"), "nodes": nodes, "columns": columns}


def _pad(files: tuple[str, ...], number: int, weights: tuple[float, ...], kl_scale: float) -> Nodes:
    """Make a loader, and the Preference Weights with its names."""
    chosen = {f"lora_{i}": file for i, file in enumerate(files, start=1)}
    pad = preference(weights)
    pad["widgets"]["kl_scale"] = kl_scale
    pad["links"] = {"reward_loras": (f"loras_{number}", "reward_loras")}
    return {f"preference_{number}": pad, f"loras_{number}": node("LoadRewardLoRAs", chosen, color=OURS)}


def pads() -> Template:
    """Make the three shapes of the pad."""
    nodes = (
        _pad(_FILES[:2], 0, (0.35, 0.65, 0.0, 0.0), 1.0)
        | _pad(_FILES, 1, (0.2, 0.3, 0.5, 0.0), 0.6)
        | _pad((*_FILES, _FILES[0]), 2, (0.12, 0.18, 0.42, 0.28), 1.5)
    )
    columns = [(320, [f"preference_{number}", f"loras_{number}"]) for number in range(3)]
    return {"id": _IDS.format("ff"), "nodes": nodes, "columns": columns}
