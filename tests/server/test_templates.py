"""Every template of ``workflows/`` runs through ``/prompt`` in API form; the browser tests prove the recorded forms."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path

import comfy_prompts
import numpy as np
import pytest
from comfy_server import CHECKOUT, FOLDER, ComfyServer, PromptError
from PIL import Image
from workflow_sources import TITLES

RECORDED = sorted((Path(__file__).parent / "templates").glob("*.json"))
NAMES = [path.stem for path in RECORDED]
# The pictures a template saves where it is not one of the test's own size.
SAVED = {name: [(128, 128)] * 9 for name in ("try_it_no_downloads", "app_try_it")} | {"find_my_taste_no_downloads": []}
# Drawn sheets and figures, as large as their contents need.
DRAWN = {"any_two_style_loras": 1, "kl_scale_row": 1, "sweep_with_pareto": 2}


def test_every_template_has_a_thumbnail_and_an_api_form() -> None:
    shipped = sorted(path.stem for path in (CHECKOUT / "workflows").glob("*.json"))
    assert shipped == sorted(path.stem for path in (CHECKOUT / "workflows").glob("*.jpg")) == sorted(TITLES.values())
    assert sorted(TITLES) == NAMES
    assert min(shipped) == TITLES["try_it_no_downloads"], "the one that needs nothing comes first"


def test_thumbnails_are_square_and_without_a_frame() -> None:
    """The front end's cards are square. A frame is a border of one colour."""
    for path in (CHECKOUT / "workflows").glob("*.jpg"):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=float)
        assert pixels.shape[0] == pixels.shape[1] >= 384, path.name
        borders = (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])
        assert all(border.std(axis=(0, 1)).max() > 2 for border in borders), path.name  # noise of JPEG: below 2


def test_the_server_offers_and_serves_them(server: ComfyServer) -> None:
    """By their titles, and by the names of earlier versions, which links may have."""
    assert sorted(server.get_json("/workflow_templates")[FOLDER]) == sorted(TITLES.values())
    for name, title in TITLES.items():
        had_that_name = (CHECKOUT / "tests" / "browser" / "saved_before" / f"{name}.json").exists()
        names = [title, name] if had_that_name else [title]
        for each in map(urllib.parse.quote, names):
            assert server.get_json(f"/api/workflow_templates/{FOLDER}/{each}.json")["nodes"]
            assert server.get(f"/api/workflow_templates/{FOLDER}/{each}.jpg").startswith(b"\xff\xd8"), "no JPEG"


@pytest.mark.parametrize("path", RECORDED, ids=NAMES)
def test_runs_and_saves_an_image(server: ComfyServer, path: Path) -> None:
    outputs = server.run(comfy_prompts.for_tests(json.loads(path.read_text())))
    saved = [image for output in outputs.values() for image in output.get("images", [])]
    sizes = []
    for entry in saved:
        with Image.open(server.image(entry)) as image:
            assert np.asarray(image).std() > 1, "a flat image"
            sizes.append(image.size)
    if path.stem in DRAWN:
        assert len(sizes) == DRAWN[path.stem] and all(min(size) > 3 * comfy_prompts.SIZE for size in sizes)
    else:
        assert sizes == SAVED.get(path.stem, [(comfy_prompts.SIZE, comfy_prompts.SIZE)])


def test_run_as_shipped_asks_for_a_lora(server: ComfyServer) -> None:
    """Before the artist has picked anything: a sentence that says what to do."""
    prompt = json.loads(RECORDED[NAMES.index("blend_two_adapters")].read_text())
    for item in prompt.values():
        if item["class_type"] == "CheckpointLoaderSimple":
            item["inputs"]["ckpt_name"] = comfy_prompts.CHECKPOINT
    with pytest.raises(PromptError, match="No LoRA is chosen: choose at least one in Load Reward LoRAs"):
        server.run(prompt)


def test_a_checkpoint_has_an_address() -> None:
    """So that the front end offers the download."""
    files = (CHECKOUT / "workflows").glob("*.json")
    nodes = [node for path in files for node in json.loads(path.read_text())["nodes"]]
    loaders = [node for node in nodes if node["type"] == "CheckpointLoaderSimple"]
    assert loaders
    for node in loaders:
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0]
        assert model["directory"] == "checkpoints"
        assert model["url"].startswith("https://") and model["url"].endswith("/" + model["name"])
