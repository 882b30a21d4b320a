"""Schedules, regions and the probe through ``/prompt``: laws that the saved images must keep."""

from __future__ import annotations

import comfy_prompts
import numpy as np
import pytest
from comfy_server import ComfyServer, PromptError
from PIL import Image


def pixels(server: ComfyServer, prompt: comfy_prompts.Prompt, node: str = "save") -> np.ndarray:
    """The saved image, int[H, W, 3]."""
    (saved,) = server.run(prompt)[node]["images"]
    with Image.open(server.image(saved)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def with_preference(node: dict, class_type: str = "BlendedKSampler", **sampler) -> comfy_prompts.Prompt:
    """The usual graph, its preference from a node that joins "first", all on one adapter, and "second", on the other."""
    prompt = comfy_prompts.blended(1.0, 0.0, class_type=class_type, sampler=sampler)
    prompt["first"] = comfy_prompts.preference(1.0, 0.0)
    prompt["second"] = comfy_prompts.preference(0.0, 1.0)
    prompt["preference"] = node
    return prompt


def schedule(**changes) -> dict:
    inputs = {"curve": "linear", "start_percent": 0.0, "end_percent": 1.0} | changes
    return comfy_prompts.node(
        "PreferenceSchedule", preference_start=["first", 0], preference_end=["second", 0], **inputs
    )


def regional(value: float, class_type: str = "BlendedKSampler", **sampler) -> comfy_prompts.Prompt:
    """With a mask of one value all over."""
    links = {"preference": ["first", 0], "regional_preference": ["second", 0], "mask": ["mask", 0]}
    prompt = with_preference(comfy_prompts.node("RegionalPreference", **links, feather=16), class_type, **sampler)
    prompt["mask"] = comfy_prompts.node("SolidMask", value=value, width=comfy_prompts.SIZE, height=comfy_prompts.SIZE)
    return prompt


def test_a_schedule_that_is_over_at_once_is_its_end_and_a_moving_one_is_neither(server: ComfyServer) -> None:
    ends = [pixels(server, comfy_prompts.blended(*weights)) for weights in ((1.0, 0.0), (0.0, 1.0))]
    over = pixels(server, with_preference(schedule(end_percent=0.0)))
    moving = pixels(server, with_preference(schedule()))
    assert np.abs(over - ends[1]).max() == 0
    assert min(np.abs(moving - end).max() for end in ends) > 5


def test_a_mask_of_ones_or_zeros_is_one_preference_alone(server: ComfyServer) -> None:
    for value, weights in ((0.0, (1.0, 0.0)), (1.0, (0.0, 1.0))):
        alone = pixels(server, comfy_prompts.blended(*weights))
        assert np.abs(pixels(server, regional(value)) - alone).max() <= 1


def test_half_a_mask_is_half_of_each(server: ComfyServer) -> None:
    assert np.abs(pixels(server, regional(0.5)) - pixels(server, comfy_prompts.blended(0.5, 0.5))).max() <= 1


def test_where_a_region_cannot_go_is_said(server: ComfyServer) -> None:
    with pytest.raises(PromptError, match="cannot have another preference in a region"):
        server.run(regional(1.0, "StochasticAdapterSampler", draws="stratified"))


def test_the_probe_draws_and_says_what_it_found(server: ComfyServer) -> None:
    prompt = comfy_prompts.blended(0.5, 0.5)
    prompt["probe"] = prompt["sampler"] | {"class_type": "BlendProbe"}
    prompt["figure"] = comfy_prompts.node("SaveImage", images=["probe", 0], filename_prefix="probe")
    prompt["verdict"] = comfy_prompts.node("PreviewAny", source=["probe", 1])
    prompt["decode"]["inputs"]["samples"] = ["probe", 3]
    plain = pixels(server, comfy_prompts.blended(0.5, 0.5))
    outputs = server.run(prompt)
    (saved,) = outputs["figure"]["images"]
    with Image.open(server.image(saved)) as image:
        assert image.size == (720, 420)
        assert image.convert("L").getextrema()[0] < 100, "no line on the figure"
    (text,) = outputs["verdict"]["text"]
    assert "of the adapters' effect" in text
    assert "for the blend (2 model calls)" in text
    assert np.abs(pixels(server, prompt) - plain).max() == 0
