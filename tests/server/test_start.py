"""The server starts with the extension as installed, says nothing bad about it, and offers the contract's nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import node_contract
from comfy_server import ComfyServer

RECORDED = Path(__file__).with_name("object_info.json")
OLD = Path(__file__).with_name("object_info_0.1.json")
# The order and defaults of design.md, written out by hand: what a saved workflow stores by position.
SAMPLING = ["seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"]
WIDGETS = {
    "LoadRewardLoRAs": [
        *("lora_1", "strength_1", "lora_2", "strength_2", "lora_3", "strength_3", "lora_4", "strength_4"),
        *("on_1", "on_2", "on_3", "on_4"),
        *(f"{name}_{number}" for number in (5, 6, 7, 8) for name in ("lora", "strength", "on")),
        "scale",
    ],
    "PreferenceWeights": [
        *("weight_1", "weight_2", "weight_3", "weight_4", "kl_scale", "weight_5", "weight_6", "weight_7", "weight_8"),
    ],
    "BlendModel": ["method", "draws", "evaluation", "early_share"],
    "BlendedKSampler": SAMPLING,
    "KLScaleSampler": [*SAMPLING, "kl_scale"],
    "StochasticAdapterSampler": [*SAMPLING, "draws"],
    "MSDDASampler": [
        *(name for name in SAMPLING if name != "sampler_name"),
        "eta_1",
        "eta_2",
        "eta_3",
        "eta_4",
        "renormalise",
    ],
    "CorrectedBlendSampler": [*(name for name in SAMPLING if name != "sampler_name"), "particles", "resample_below"],
    "BakeBlend": [
        *("rank", "precision", "method"),
        *("seed", "steps", "cfg", "trajectories", "iterations", "learning_rate"),
    ],
    "LoadMiniature": ["batch_size"],
    "PreferenceSweep": ["kind", "points", "divisions", "kl_scale_from", "kl_scale_to"],
    "PreferenceGrid": ["thumbnail_size"],
    "PreferenceSchedule": ["curve", "start_percent", "end_percent"],
    "RegionalPreference": ["feather"],
    "BlendProbe": SAMPLING[:-1],
    "LoadRewardModel": ["reward", "model_folder", "allow_download"],
    "ScoreImages": [],
    "RewardLoRAFromModel": [],
    "RewardLoRAsFromStack": [],
    "BlendTextEncoder": [],
    "PreferenceDuel": ["kl_scale_from", "kl_scale_to", "seed_mode", "first_seed"],
    "PreferenceDuelView": ["keep_pictures"],
    "KeepBest": ["weight_1", "weight_2", "weight_3", "weight_4", "scale", "count", "among"],
}
DEFAULTS = {"steps": 30, "cfg": 7.5, "sampler_name": "euler_ancestral", "scheduler": "normal", "denoise": 1.0}


def log_lines(server: ComfyServer) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", server.log.read_text(errors="replace")).splitlines()


def test_start_log_has_the_extension_and_no_complaint(server: ComfyServer) -> None:
    lines = log_lines(server)
    end = next(number for number, line in enumerate(lines) if "To see the GUI go to" in line)
    start = lines[:end]
    assert any(re.search(r"\d seconds: .*custom_nodes/diffusion-blend", line) for line in start), "not loaded"
    assert not [line for line in start if re.search(r"ERROR|CRITICAL|Traceback|IMPORT FAILED|Cannot import", line)]
    about_users = "User settings|--multi-user"  # the host's own two warnings on every first start
    assert not [line for line in start if "WARNING" in line and not re.search(about_users, line)]


def test_hiding_the_training_extra_works(server: ComfyServer) -> None:
    """Else the start log would prove nothing: the same interpreter and path, asked for a hidden package."""
    import os
    import subprocess
    import sys

    command = [
        sys.executable,
        "-c",
        "import importlib.util as u; print(u.find_spec('peft'), u.find_spec('torch') is None)",
    ]
    environment = os.environ | {"PYTHONPATH": str(server.base / "hide")}
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "None False\n"


def test_object_info_is_what_was_recorded(server: ComfyServer) -> None:
    now = node_contract.contract(server.get_json("/object_info"))
    recorded = json.loads(RECORDED.read_text())
    assert sorted(now) == sorted(recorded)
    for name, node in recorded.items():
        assert now[name] == node, (
            f"{name} changed: saved workflows store widget values by position, so only ever append"
        )


def test_workflows_of_version_0_1_keep_their_meaning() -> None:
    """Every node, input and output of that version is still there in its place; more may only follow.

    A link has no stored place: the front end finds it by name. So an input for a link may have become optional.
    """
    now, before = json.loads(RECORDED.read_text()), json.loads(OLD.read_text())
    for name, node in before.items():
        assert node["display_name"] == now[name]["display_name"]
        assert now[name]["outputs"][: len(node["outputs"])] == node["outputs"]
        freed = {entry["name"] for entry in node["inputs"] if entry["type"] == "PREFERENCE"}
        found = {entry["name"] for entry in now[name]["inputs"] if entry["type"] == "PREFERENCE"}
        assert freed <= found
        for group in ("required", "optional"):
            old = [entry for entry in node["inputs"] if entry["group"] == group and entry["name"] not in freed]
            new = [entry for entry in now[name]["inputs"] if entry["group"] == group and entry["name"] not in found]
            for was, is_now in zip(old, new, strict=False):
                options = was.get("options", [])
                assert is_now.get("options", [])[: len(options)] == options
                assert {**is_now, "options": options} == {**was, "options": options}
            assert len(new) >= len(old)


def test_recorded_contract_is_the_design(server: ComfyServer) -> None:
    recorded = json.loads(RECORDED.read_text())
    assert sorted(recorded) == sorted(WIDGETS)
    for name, node in recorded.items():
        values = {
            entry["name"]: entry for entry in node["inputs"] if entry["type"] in ("INT", "FLOAT", "COMBO", "BOOLEAN")
        }
        assert list(values) == WIDGETS[name]
        for input_name in set(values) & set(DEFAULTS):
            assert values[input_name]["default"] == DEFAULTS[input_name], f"{name}.{input_name}"
    weights = [
        entry["default"] for entry in recorded["PreferenceWeights"]["inputs"] if entry["name"].startswith("weight_")
    ]
    assert weights == [0.5, 0.5, *[0.0] * 6]


def test_every_input_and_output_has_a_tooltip(server: ComfyServer) -> None:
    missing = []
    for name, info in server.get_json("/object_info").items():
        if info["category"] != node_contract.CATEGORY:
            continue
        assert info["description"].strip(), name
        for group in ("required", "optional"):  # the host's hidden inputs are never shown
            described = info["input"].get(group, {}).items()
            missing += [f"{name}.{key}" for key, value in described if not value[1].get("tooltip", "").strip()]
        missing += [
            f"{name} -> {output}"
            for output, tooltip in zip(info["output_name"], info["output_tooltips"], strict=True)
            if not (tooltip or "").strip()
        ]
    assert not missing
