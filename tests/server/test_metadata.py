"""Saved images say what was blended: the host's own Save Image, its PNG read back, its cache at work."""

from __future__ import annotations

import json
from typing import Any

import comfy_prompts
from comfy_server import ComfyServer
from make_server_models import LORAS
from PIL import Image


def queue(server: ComfyServer, prompt: comfy_prompts.Prompt, extra: dict[str, Any] | None = None) -> str:
    """Queue a prompt as the front end does; its id."""
    body: dict[str, Any] = {"prompt": prompt}
    if extra is not None:
        body["extra_data"] = {"extra_pnginfo": extra}
    return server.post("/prompt", body)["prompt_id"]


def chunks(server: ComfyServer, prompt_id: str, node: str = "save") -> list[dict[str, Any]]:
    """Every saved image's text chunks, as JSON."""
    found = []
    for saved in server.wait(prompt_id)[node]["images"]:
        with Image.open(server.image(saved)) as image:
            found.append({name: json.loads(text) for name, text in image.text.items()})
    return found


def cached(server: ComfyServer, prompt_id: str) -> list[str]:
    """Nodes whose result the host took from its cache."""
    messages = server.get_json(f"/history/{prompt_id}")[prompt_id]["status"]["messages"]
    return next(data["nodes"] for name, data in messages if name == "execution_cached")


def expected(weight: float, kl_scale: float = 1.0, **others: Any) -> dict[str, Any]:
    adapters = [
        {"name": name, "file": file, "strength": 1.0, "weight": share}
        for name, file, share in zip(("aesthetic", "faithful"), LORAS, (weight, round(1 - weight, 6)), strict=False)
    ]
    return {"method": "blend", "adapters": adapters, "kl_scale": kl_scale} | others


def test_a_saved_image_says_what_was_blended_beside_the_workflow(server: ComfyServer) -> None:
    workflow = {"nodes": [], "links": [], "version": 0.4}
    extra = {"workflow": workflow, "other_pack": {"kept": [1, 2]}}
    prompt = comfy_prompts.blended(0.3, 0.7, kl_scale=1.5)
    (text,) = chunks(server, queue(server, prompt, extra))
    assert text["diffusion_blend"] == {"sampler": [expected(0.3, 1.5)]}
    assert text["workflow"] == workflow
    assert text["other_pack"] == {"kept": [1, 2]}
    assert text["prompt"]["preference"] == prompt["preference"]


def test_also_from_a_cached_latent_and_for_a_request_without_metadata(server: ComfyServer) -> None:
    prompt = comfy_prompts.blended(0.35, 0.65)
    (first,) = chunks(server, queue(server, prompt))
    prompt["save"]["inputs"]["filename_prefix"] = "again"
    again = queue(server, prompt)
    (second,) = chunks(server, again)
    assert "sampler" in cached(server, again)
    assert first["diffusion_blend"] == second["diffusion_blend"] == {"sampler": [expected(0.35)]}


def test_also_where_the_second_is_queued_before_the_first_ran(server: ComfyServer) -> None:
    prompts = [comfy_prompts.blended(0.45, 0.55) for _ in range(3)]
    for number, prompt in enumerate(prompts):
        prompt["save"]["inputs"]["filename_prefix"] = f"queued{number}"
        if number == 2:  # another id for the same node: still the host's cached result
            prompt["other"] = prompt.pop("sampler")
            prompt["decode"]["inputs"]["samples"] = ["other", 0]
    ids = [queue(server, prompt) for prompt in prompts]
    texts = [chunks(server, prompt_id)[0]["diffusion_blend"] for prompt_id in ids]
    assert texts == [{"sampler": [expected(0.45)]}] * 2 + [{"other": [expected(0.45)]}]
    assert "sampler" in cached(server, ids[1])
    assert "other" in cached(server, ids[2])


def test_a_changed_weight_is_a_changed_record(server: ComfyServer) -> None:
    for weight in (0.2, 0.8, 0.2):
        (text,) = chunks(server, queue(server, comfy_prompts.blended(weight, 1 - weight)))
        assert text["diffusion_blend"] == {"sampler": [expected(weight)]}


def test_several_blends_in_one_graph(server: ComfyServer) -> None:
    """A second pass over the first one's latent, with a schedule; the first also saved by itself."""
    prompt = comfy_prompts.blended(0.4, 0.6)
    prompt["end"] = comfy_prompts.preference(0.0, 1.0)
    prompt["schedule"] = comfy_prompts.node(
        "PreferenceSchedule",
        preference_start=["preference", 0],
        preference_end=["end", 0],
        curve="cosine",
        start_percent=0.0,
        end_percent=0.5,
    )
    second = prompt["sampler"]["inputs"] | {
        "latent_image": ["sampler", 0],
        "denoise": 0.5,
        "preference": ["schedule", 0],
        "draws": "stratified",
    }
    prompt["second"] = {"class_type": "StochasticAdapterSampler", "inputs": second}
    prompt["decode"]["inputs"]["samples"] = ["second", 0]
    (text,) = chunks(server, queue(server, prompt))
    recorded = text["diffusion_blend"]
    assert recorded["sampler"] == [expected(0.4)]
    (record,) = recorded["second"]
    assert record["method"] == "stochastic"
    assert record["draws"] == "stratified"
    assert [adapter["file"] for adapter in record["adapters"]] == list(LORAS[:2])
    assert record["preference"] == {
        "start": {"weights": [0.4, 0.6], "kl_scale": 1.0},
        "end": {"weights": [0.0, 1.0], "kl_scale": 1.0},
        "curve": "cosine",
        "start_percent": 0.0,
        "end_percent": 0.5,
    }


def test_a_list_of_preferences_is_a_list_of_records(server: ComfyServer) -> None:
    prompt = comfy_prompts.blended(0.0, 0.0)
    prompt["start"], prompt["end"] = comfy_prompts.preference(1.0, 0.0), comfy_prompts.preference(0.0, 1.0)
    prompt["preference"] = comfy_prompts.node(
        "PreferenceSweep",
        kind="line",
        points=3,
        divisions=4,
        kl_scale_from=0.0,
        kl_scale_to=2.0,
        preference_start=["start", 0],
        preference_end=["end", 0],
        reward_loras=["loras", 0],
    )
    for prefix in ("swept", "swept_again"):
        prompt["save"]["inputs"]["filename_prefix"] = prefix
        texts = chunks(server, queue(server, prompt))
        assert len(texts) == 3
        for text in texts:
            assert text["diffusion_blend"] == {"sampler": [expected(1.0), expected(0.5), expected(0.0)]}


def test_a_graph_without_a_blend_gets_nothing(server: ComfyServer) -> None:
    prompt = comfy_prompts.base(comfy_prompts.node("KSampler", model=["checkpoint", 0]))
    (text,) = chunks(server, queue(server, prompt))
    assert "diffusion_blend" not in text


def test_requests_that_are_no_prompts_are_left_to_the_server(server: ComfyServer) -> None:
    import urllib.error

    circle = comfy_prompts.blended(0.5, 0.5)
    circle["latent"] = comfy_prompts.node(
        "LatentUpscaleBy", samples=["sampler", 0], upscale_method="area", scale_by=1.0
    )
    for body in (
        {"prompt": "what"},
        {"prompt": {"1": "node", "2": {"class_type": "BlendedKSampler"}}},
        {"prompt": circle},
    ):
        try:
            server.post("/prompt", body)
        except urllib.error.HTTPError as error:
            assert error.code in (400, 500)
    assert "on_prompt_handler" not in server.log.read_text(errors="replace")
