"""A sweep on the real server: one run a point with the same noise, one sheet, scores, and nothing left when interrupted."""

from __future__ import annotations

import re
import time
from typing import Any

import comfy_prompts
import numpy as np
import pytest
import tiny_clip
from comfy_prompts import node
from comfy_server import ComfyServer, PromptError
from diffusion_blend.training.score import ScoreConfig, score_files
from make_server_models import LORAS
from PIL import Image

POINTS = 15
PATIENCE = 900  # seconds: fifteen runs on a machine that has other work


def swept(seed: int = 7, steps: int = 3, **sweep: Any) -> comfy_prompts.Prompt:
    """The tests' graph with a sweep over three adapters in place of the preference, and everything collected."""
    prompt = comfy_prompts.blended(1.0, files=LORAS, sampler={"seed": seed, "steps": steps})
    del prompt["preference"]
    prompt["sampler"]["inputs"]["preference"] = ["sweep", 0]
    inputs = {"kind": "simplex", "points": 5, "divisions": 4, "kl_scale_from": 0.0, "kl_scale_to": 2.0}
    prompt["sweep"] = node("PreferenceSweep", **(inputs | {"reward_loras": ["loras", 0]} | sweep))
    prompt["grid"] = node(
        "PreferenceGrid",
        images=["decode", 0],
        preferences=["sweep", 0],
        labels=["sweep", 1],
        reward_loras=["loras", 0],
        thumbnail_size=64,
        reward_across="",
        reward_up="",
    )
    prompt["sheet"] = node("SaveImage", images=["grid", 0], filename_prefix="sheet")
    prompt["pareto"] = node("SaveImage", images=["grid", 1], filename_prefix="pareto")
    return prompt


def scored(prompt: comfy_prompts.Prompt, *rewards: str) -> comfy_prompts.Prompt:
    """The same with scores in the grid, the best image kept, and the words of both shown."""
    scores = None
    for number, reward in enumerate(rewards):
        prompt[f"model{number}"] = node(
            "LoadRewardModel", reward=reward, model_folder="automatic", allow_download=False
        )
        links = {} if scores is None else {"scores": scores}
        prompt[f"score{number}"] = node(
            "ScoreImages",
            images=["decode", 0],
            reward_model=[f"model{number}", 0],
            prompt="a red cat",
            name="",
            **links,
        )
        scores = [f"score{number}", 0]
    prompt["grid"]["inputs"]["scores"] = scores
    weights = {f"weight_{i}": float(i == 1) for i in range(1, 5)}
    prompt["best"] = node(
        "KeepBest",
        images=["decode", 0],
        scores=scores,
        labels=["sweep", 1],
        scale="raw",
        count=1,
        among="all together",
        **weights,
    )
    prompt["kept"] = node("SaveImage", images=["best", 0], filename_prefix="kept")
    prompt["report"] = node("PreviewAny", source=["best", 3])
    return prompt


def pixels(server: ComfyServer, saved: dict[str, str]) -> np.ndarray:
    with Image.open(server.image(saved)) as image:
        return np.asarray(image.convert("RGB"))


def fetch(server: ComfyServer, outputs: dict[str, Any], key: str = "save") -> list[np.ndarray]:
    return [pixels(server, saved) for saved in outputs[key]["images"]]


def runs_finished(server: ComfyServer, start: int, steps: int) -> int:
    """How many sampling runs the host's progress bar has shown to their end since a place in the log."""
    shown = server.log.read_bytes()[start:].decode(errors="replace")  # as it is: a bar's interim states end in \r
    return len(re.findall(rf"100%\|[^|]*\| {steps}/{steps} \[[^]]*\]\n", shown))


def test_a_simplex_runs_once_a_point_with_the_same_noise(server: ComfyServer) -> None:
    """Each image of the sweep is, bit for bit, what Preference Weights alone gives with the same seed."""
    start = server.log.stat().st_size
    outputs = server.run(scored(swept(seed=11), "colourfulness", "miniature.warmth"), PATIENCE)
    assert runs_finished(server, start, 3) == POINTS
    images = fetch(server, outputs)
    assert len(images) == POINTS
    assert len({image.tobytes() for image in images}) == POINTS
    for point, weights in ((0, (1.0, 0.0, 0.0)), (4, (0.5, 0.25, 0.25)), (14, (0.0, 0.0, 1.0))):
        alone = comfy_prompts.blended(*weights, files=LORAS, sampler={"seed": 11})
        assert np.array_equal(fetch(server, server.run(alone, PATIENCE))[0], images[point])
    (sheet,), (figure,) = fetch(server, outputs, "sheet"), fetch(server, outputs, "pareto")
    assert sheet.shape[0] > 5 * 64 and sheet.shape[1] > 5 * 64
    assert figure.shape == (960, 1280, 3)
    files = [str(server.image(saved)) for saved in outputs["save"]["images"]]
    (server.base / "prompt.txt").write_text("a red cat")
    rows = score_files(ScoreConfig(files, str(server.base / "prompt.txt"), ["colourfulness"]))
    best = int(np.argmax([row["colourfulness"] for row in rows]))
    (kept,) = fetch(server, outputs, "kept")
    assert np.array_equal(kept, images[best])
    assert outputs["report"]["text"][0].startswith(f"image {best} (w ")


def test_scores_of_a_file_are_the_commands(server: ComfyServer) -> None:
    """Load Image and Score Images against ``diffusion-blend score`` on the same file, with and without a network."""
    folder = server.base / "models" / "diffusion_blend" / "clip_score"
    tiny_clip.write(folder)
    server.base.joinpath("input").mkdir(exist_ok=True)
    file = server.base / "input" / "noise.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(file)
    (server.base / "prompt.txt").write_text("a red cat")
    rewards = ["colourfulness", "jpeg_compressibility", "clip_score"]
    folders = {"clip_score": str(folder)}
    (expected,) = score_files(
        ScoreConfig([str(file)], str(server.base / "prompt.txt"), rewards, reward_folders=folders)
    )
    prompt = {"image": node("LoadImage", image=file.name)}
    scores: dict[str, Any] = {}
    for reward in rewards:
        prompt[f"load {reward}"] = node(
            "LoadRewardModel", reward=reward, model_folder="automatic", allow_download=False
        )
        inputs = {"images": ["image", 0], "reward_model": [f"load {reward}", 0], "prompt": "a red cat", "name": ""}
        prompt[reward] = node("ScoreImages", **inputs, **scores)
        scores = {"scores": [reward, 0]}
    prompt["shown"] = node("PreviewAny", source=["clip_score", 1])
    (text,) = server.run(prompt, PATIENCE)["shown"]["text"]
    header, row, _ = (line.split() for line in text.splitlines())
    assert header == ["image", *rewards]
    assert [float(value) for value in row[1:]] == pytest.approx([expected[name] for name in rewards], abs=6e-5)


def test_an_interrupted_sweep_leaves_nothing_behind(server: ComfyServer) -> None:
    """In the middle of its second run or later; then the same graph with other settings is as in a fresh server."""
    alone = comfy_prompts.blended(0.25, 0.5, 0.25, files=LORAS, sampler={"seed": 21})
    (before,) = fetch(server, server.run(alone, PATIENCE))
    (plain_before,) = fetch(
        server, server.run(comfy_prompts.blended(0.5, 0.5, kl_scale=0.0, sampler={"seed": 21}), PATIENCE)
    )
    start = server.log.stat().st_size
    queued = server.post("/prompt", {"prompt": swept(seed=22, steps=12)})
    deadline = time.monotonic() + PATIENCE
    while runs_finished(server, start, 12) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.post("/interrupt", {})
    with pytest.raises(PromptError, match="interrupted"):
        server.wait(queued["prompt_id"], PATIENCE)
    history = server.get_json(f"/history/{queued['prompt_id']}")[queued["prompt_id"]]
    assert history["outputs"] == {}
    assert runs_finished(server, start, 12) < POINTS
    # Another seed first, so that the host's cache of finished nodes answers nothing of the second.
    server.run(comfy_prompts.blended(0.25, 0.5, 0.25, files=LORAS, sampler={"seed": 23}), PATIENCE)
    server.post("/free", {"unload_models": False, "free_memory": True})
    (after,) = fetch(server, server.run(alone, PATIENCE))
    (plain_after,) = fetch(
        server, server.run(comfy_prompts.blended(0.5, 0.5, kl_scale=0.0, sampler={"seed": 21}), PATIENCE)
    )
    assert np.array_equal(before, after)
    assert np.array_equal(plain_before, plain_after)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"divisions": 60}, "are 1891 points, each a whole run"),
        ({"kind": "line"}, "connect preference_start and preference_end"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_words(server: ComfyServer, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        server.run(swept(**changes))


def test_a_missing_model_is_named(server: ComfyServer) -> None:
    prompt = {
        "image": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "model": node("LoadRewardModel", reward="pick_score", model_folder="automatic", allow_download=False),
        "score": node("ScoreImages", images=["image", 0], reward_model=["model", 0], prompt="a red cat", name=""),
        "shown": node("PreviewAny", source=["score", 1]),
    }
    with pytest.raises(PromptError, match="The model of pick_score is not on this machine.*Switch on allow_download"):
        server.run(prompt)
