"""Graphs in API form through ``/prompt``: images come out, and bad input is answered by name."""

from __future__ import annotations

import json
from typing import Any

import comfy_prompts
import numpy as np
import pytest
import torch
from comfy_server import ComfyServer, PromptError
from make_server_models import LORAS
from PIL import Image
from safetensors.torch import save_file


def pixels(server: ComfyServer, outputs: dict[str, Any]) -> np.ndarray:
    """The saved image, uint8[H, W, 3]."""
    (saved,) = outputs["save"]["images"]
    with Image.open(server.image(saved)) as image:
        return np.asarray(image.convert("RGB"))


def plain(files: tuple[str, ...] = ()) -> comfy_prompts.Prompt:
    """The host's own KSampler, after its own LoRA loaders."""
    prompt = comfy_prompts.base(comfy_prompts.node("KSampler", model=["checkpoint", 0]))
    model = ["checkpoint", 0]
    for file in files:
        prompt[file] = comfy_prompts.node("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=1.0)
        model = [file, 0]
    prompt["sampler"]["inputs"]["model"] = model
    return prompt


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_all_weight_on_one_adapter_is_the_hosts_lora_loader(server: ComfyServer) -> None:
    ours = pixels(server, server.run(comfy_prompts.blended(0.0, 1.0)))
    hosts = pixels(server, server.run(plain((LORAS[1],))))
    other = pixels(server, server.run(plain((LORAS[0],))))
    assert ours.shape == (comfy_prompts.SIZE, comfy_prompts.SIZE, 3)
    assert largest_difference(ours, hosts) <= 1  # one level of rounding
    assert largest_difference(ours, other) > 20


def test_kl_scale_0_is_the_base_model(server: ComfyServer) -> None:
    base = pixels(server, server.run(plain()))
    blended = pixels(server, server.run(comfy_prompts.blended(0.5, 0.5, kl_scale=0.0)))
    assert largest_difference(base, blended) == 0


def test_weights_change_the_image(server: ComfyServer) -> None:
    images = [pixels(server, server.run(comfy_prompts.blended(w, 1 - w))) for w in (0.2, 0.8)]
    assert largest_difference(*images) > 5


@pytest.mark.parametrize(
    ("class_type", "extra", "dropped"),
    [
        ("StochasticAdapterSampler", {"draws": "stratified"}, ()),
        (
            "MSDDASampler",
            {"eta_1": 1.0, "eta_2": 0.9, "eta_3": 1.0, "eta_4": 1.0, "renormalise": True},
            ("sampler_name",),
        ),
        ("KLScaleSampler", {"kl_scale": 0.5}, ()),
    ],
)
def test_every_sampler_saves_an_image(
    server: ComfyServer, class_type: str, extra: dict[str, Any], dropped: tuple[str, ...]
) -> None:
    prompt = comfy_prompts.blended(0.5, 0.5, class_type=class_type, sampler=extra)
    for name in dropped:
        del prompt["sampler"]["inputs"][name]
    image = pixels(server, server.run(prompt))
    assert image.std() > 1, "a flat image"


def chain(first: tuple[str, ...], second: tuple[str, ...], *weights: tuple[float, ...]) -> comfy_prompts.Prompt:
    """Two chained loaders, and a Preference Weights for each tuple of weights."""
    prompt = comfy_prompts.blended(1.0)
    prompt["first"] = comfy_prompts.loras(*first)
    prompt["loras"] = comfy_prompts.loras(*second)
    prompt["loras"]["inputs"]["reward_loras"] = ["first", 0]
    for number, values in enumerate(weights, start=1):
        last = number == len(weights)
        links = {"reward_loras": ["loras" if last else "first", 0]}
        links |= {"preference": [f"preference {number - 1}", 0]} if number > 1 else {}
        prompt["preference" if last else f"preference {number}"] = comfy_prompts.preference(*values, **links)
    return prompt


def unlinked(prompt: comfy_prompts.Prompt) -> comfy_prompts.Prompt:
    """The same prompt; its Preference Weights are connected to no loader."""
    changed = {name: item | {"inputs": dict(item["inputs"])} for name, item in prompt.items()}
    for item in changed.values():
        if item["class_type"] == "PreferenceWeights":
            item["inputs"].pop("reward_loras", None)
    return changed


def test_the_weights_of_a_bypassed_loader_count_as_0(server: ComfyServer) -> None:
    """The host hands on the loader before it, so two nodes are connected to the same one."""
    bypassed = chain(LORAS[:1], LORAS[1:2], (0.5,), (0.5,), (0.25,))
    wanted = pixels(server, server.run(comfy_prompts.blended(0.5, 0.25)))
    assert largest_difference(pixels(server, server.run(bypassed)), wanted) <= 1


def test_chained_loaders_and_preferences(server: ComfyServer) -> None:
    """The second node's weight_1 is the second loader's lora_1; a single node reaches both loaders."""
    prompt = chain((LORAS[0], LORAS[2]), (LORAS[1],), (0.0, 0.0), (1.0,))
    alone = pixels(server, server.run(comfy_prompts.blended(1.0, files=(LORAS[1],))))
    assert largest_difference(pixels(server, server.run(prompt)), alone) <= 1
    single = chain((LORAS[0], LORAS[2]), (LORAS[1],), (0.0, 0.0, 1.0))
    assert largest_difference(pixels(server, server.run(single)), alone) <= 1


@pytest.mark.parametrize("class_type", ["BlendedKSampler", "MSDDASampler"])
def test_an_empty_slot_keeps_its_weight(server: ComfyServer, class_type: str) -> None:
    """With lora_1 empty the others keep weights 2 and 3 (and their etas): the image of these two alone."""
    etas = {"eta_1": 0.3, "eta_2": 1.0, "eta_3": 0.6, "eta_4": 1.0, "renormalise": False}
    moved = {"eta_1": 1.0, "eta_2": 0.6, "eta_3": 0.3, "eta_4": 1.0, "renormalise": False}
    with_gap = comfy_prompts.blended(0.5, 0.15, 0.35, files=("None", *LORAS[:2]), class_type=class_type)
    without = comfy_prompts.blended(0.3, 0.7, class_type=class_type)
    shifted = comfy_prompts.blended(0.77, 0.23, class_type=class_type)  # the versions before: weights 1 and 2
    if class_type == "MSDDASampler":
        for prompt, values in ((with_gap, etas), (without, moved), (shifted, moved)):
            prompt["sampler"]["inputs"] |= values
            del prompt["sampler"]["inputs"]["sampler_name"]
    wanted = pixels(server, server.run(without))
    assert largest_difference(pixels(server, server.run(with_gap)), wanted) <= 1
    assert largest_difference(pixels(server, server.run(shifted)), wanted) > 3


def test_a_weight_of_an_empty_slot_counts_as_0(server: ComfyServer) -> None:
    one = comfy_prompts.blended(0.5, 0.5, files=LORAS[:1])  # the defaults of Preference Weights
    alone = comfy_prompts.blended(1.0, files=LORAS[:1])
    assert largest_difference(pixels(server, server.run(one)), pixels(server, server.run(alone))) == 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (comfy_prompts.blended(0.0, 0.0), "All weights are 0 for aesthetic, faithful"),
        (comfy_prompts.blended(0.0, 0.0, 0.25), "All weights are 0 for aesthetic, faithful"),
        (
            unlinked(chain(LORAS[:1], LORAS[1:2], (0.5,), (0.5,), (0.25,))),
            "weight_1 of Preference Weights number 3 is 0.25, but there is no adapter for it, only aesthetic, faithful",
        ),
        (comfy_prompts.blended(0.5, 0.5, files=()), "No LoRA is chosen"),
        (comfy_prompts.blended(0.5, 0.5, kl_scale=float("nan")), "kl_scale is nan"),
        (comfy_prompts.blended(0.5, 0.5, files=("gone.safetensors", LORAS[0])), "gone.safetensors"),
    ],
    ids=["all weights 0", "empty slot", "absent adapter", "no adapter", "kl_scale not a number", "missing file"],
)
def test_bad_input_is_named(server: ComfyServer, prompt: comfy_prompts.Prompt, message: str) -> None:
    with pytest.raises(PromptError) as caught:
        server.run(prompt)
    server.post("/history", {"clear": True})  # else the host answers the front end with NaN, which is no JSON
    assert message in str(caught.value)


@pytest.mark.parametrize("files", [(), ("gone.safetensors", LORAS[0]), ("../loras/" + LORAS[0],)])
def test_a_wrong_choice_of_loras_is_found_before_anything_runs(server: ComfyServer, files: tuple[str, ...]) -> None:
    """The server refuses the prompt (it is in no history), the error is on the loader, and it has no traceback."""
    before = set(server.get_json("/history"))
    with pytest.raises(PromptError) as caught:
        server.run(comfy_prompts.blended(0.5, 0.5, files=files))
    assert set(server.get_json("/history")) == before
    refused = json.loads(str(caught.value))["node_errors"]
    assert list(refused) == ["loras"]
    wanted = "No LoRA is chosen" if not files else f"{files[0]}: no such file in the loras folder"
    assert all(wanted in error["details"] for error in refused["loras"]["errors"])
    assert "Traceback" not in str(caught.value)


REFUSED = {
    "all weights 0": (comfy_prompts.blended(0.0, 0.0), "preference", "All weights are 0 for aesthetic, faithful"),
    "weights of a switched-off adapter": (
        comfy_prompts.blended(1.0, 0.0) | {"loras": comfy_prompts.loras("None", LORAS[0])},
        "preference",
        "All weights are 0 for aesthetic",
    ),
    "a node without a loader": (
        unlinked(chain(LORAS[:1], LORAS[1:2], (0.5,), (0.5,), (0.25,))),
        "preference",
        "weight_1 of Preference Weights number 3 is 0.25, but there is no adapter for it",
    ),
    "a weight out of range": (comfy_prompts.blended(1.5, 0.5), "preference", "weight_1 is 1.5: it must be from 0 to 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_weights_without_an_adapter_are_found_before_anything_runs(server: ComfyServer, case: str) -> None:
    """Also where the adapters are linked to the sampler only, and behind a schedule."""
    prompt, node, message = REFUSED[case]
    before = set(server.get_json("/history"))
    bare = {name: item | {"inputs": dict(item["inputs"])} for name, item in prompt.items()}
    bare[node]["inputs"].pop("reward_loras", None)
    moving = dict(bare) | {
        "moving": comfy_prompts.node(
            "PreferenceSchedule",
            preference_start=[node, 0],
            preference_end=[node, 0],
            curve="linear",
            start_percent=0.0,
            end_percent=1.0,
        )
    }
    moving["sampler"] = bare["sampler"] | {"inputs": bare["sampler"]["inputs"] | {"preference": ["moving", 0]}}
    for graph in (prompt, bare, moving):
        with pytest.raises(PromptError) as caught:
            server.run(graph)
        refused = json.loads(str(caught.value))["node_errors"]
        assert list(refused) == [node]
        assert all(message in error["details"] for error in refused[node]["errors"])
    assert set(server.get_json("/history")) == before


@pytest.mark.parametrize("class_type", ["BlendedKSampler", "StochasticAdapterSampler", "MSDDASampler", "BlendModel"])
def test_a_bypassed_preference_is_equal_weights(server: ComfyServer, class_type: str) -> None:
    """The front end leaves the link of a bypassed node out."""
    more = {
        "StochasticAdapterSampler": {"draws": "stratified"},
        "MSDDASampler": {f"eta_{i}": 1.0 for i in range(1, 5)} | {"renormalise": False},
    }

    def image(bypassed: bool) -> np.ndarray:
        kind = "BlendedKSampler" if class_type == "BlendModel" else class_type
        prompt = comfy_prompts.blended(0.5, 0.5, class_type=kind, sampler=more.get(class_type))
        owner = "sampler"
        if class_type == "BlendModel":
            method = {"method": "blend", "draws": "stratified", "evaluation": "auto"}
            inputs = prompt["sampler"]["inputs"]
            links = {name: inputs.pop(name) for name in ("reward_loras", "preference")}
            prompt["blended"] = comfy_prompts.node("BlendModel", model=["checkpoint", 0], **links, **method)
            prompt["sampler"] = comfy_prompts.node("KSampler", **inputs | {"model": ["blended", 0]})
            owner = "blended"
        if bypassed:
            del prompt["preference"], prompt[owner]["inputs"]["preference"]
        return pixels(server, server.run(prompt))

    assert largest_difference(image(bypassed=True), image(bypassed=False)) == 0


def test_a_loader_without_loras_may_pass_others_on(server: ComfyServer) -> None:
    prompt = chain(LORAS[:1], (), (1.0,), (0.0,))
    alone = pixels(server, server.run(comfy_prompts.blended(1.0, files=LORAS[:1])))
    assert largest_difference(pixels(server, server.run(prompt)), alone) <= 1


def test_a_negative_coefficient_cannot_be_drawn(server: ComfyServer) -> None:
    prompt = comfy_prompts.blended(
        0.5, 0.5, kl_scale=1.5, class_type="StochasticAdapterSampler", sampler={"draws": "independent"}
    )
    with pytest.raises(PromptError, match=r"kl_scale|KL scale"):
        server.run(prompt)


def test_damaged_and_foreign_files_are_named(server: ComfyServer) -> None:
    folder = server.base / "models" / "loras"
    whole = (folder / LORAS[0]).read_bytes()
    (folder / "damaged.safetensors").write_bytes(whole[: len(whole) // 2])
    foreign = {
        "diffusion_model.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(4, 64),
        "diffusion_model.transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(64, 4),
    }
    save_file(foreign, folder / "foreign.safetensors")
    with pytest.raises(PromptError, match=r"damaged\.safetensors cannot be read"):
        server.run(comfy_prompts.blended(0.5, 0.5, files=("damaged.safetensors", LORAS[0])))
    with pytest.raises(PromptError, match=r"foreign\.safetensors: its only layer does not fit this model"):
        server.run(comfy_prompts.blended(0.5, 0.5, files=("foreign.safetensors", LORAS[0])))
    server.run(comfy_prompts.blended(0.5, 0.5))  # and the server goes on
