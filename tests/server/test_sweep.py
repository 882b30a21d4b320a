"""A sweep of the miniature on the real server: one run a point with the same noise, one sheet, scores, and nothing left when
interrupted.
"""

from __future__ import annotations

import re
import time
from typing import Any

import comfy_prompts
import numpy as np
import pytest
import tiny_clip
from comfy_prompts import node
from comfy_server import CHECKOUT, ComfyServer, PromptError
from diffusion_blend.rewards.command import ScoreConfig
from diffusion_blend.rewards.scoring import score_files
from PIL import Image

ADAPTERS = [path.stem for path in sorted((CHECKOUT / "miniature" / "weights" / "adapters").glob("*.safetensors"))][:3]
TEXT = "a red circle and a blue square"
POINTS = 15
PATIENCE = 900  # seconds: fifteen runs on a machine that has other work


def blended(*weights: float, kl_scale: float = 1.0, seed: int = 7, steps: int = 3) -> comfy_prompts.Prompt:
    """The miniature and three of its adapters under one preference, one picture saved."""
    links = {"model": ["miniature", 0], "reward_loras": ["loras", 0], "preference": ["preference", 0]}
    links |= {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["miniature", 3]}
    settings = comfy_prompts.SAMPLING | {"seed": seed, "steps": steps, "cfg": 1.0}
    return {
        "miniature": node("LoadMiniature", batch_size=1),
        "positive": node("CLIPTextEncode", clip=["miniature", 1], text=TEXT),
        "negative": node("CLIPTextEncode", clip=["miniature", 1], text=""),
        "loras": comfy_prompts.loras(*[f"miniature/{name}.safetensors" for name in ADAPTERS]),
        "preference": comfy_prompts.preference(*weights, kl_scale=kl_scale, reward_loras=["loras", 0]),
        "sampler": node("BlendedKSampler", **links, **settings),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["miniature", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="diffusion_blend"),
    }


def swept(seed: int = 7, steps: int = 3, **sweep: Any) -> comfy_prompts.Prompt:
    """The same with a sweep over the three adapters in place of the preference, and everything collected."""
    prompt = blended(1.0, seed=seed, steps=steps)
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
        thumbnail_size=96,  # three times as large: drawn without smoothing
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
            prompt=TEXT,
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
    outputs = server.run(scored(swept(seed=11), "colourfulness", f"miniature.{ADAPTERS[-1]}"), PATIENCE)
    assert runs_finished(server, start, 3) == POINTS
    images = fetch(server, outputs)
    assert len(images) == POINTS
    assert len({image.tobytes() for image in images}) == POINTS
    for point, weights in ((0, (1.0, 0.0, 0.0)), (4, (0.5, 0.25, 0.25)), (14, (0.0, 0.0, 1.0))):
        (alone,) = fetch(server, server.run(blended(*weights, seed=11), PATIENCE))
        assert np.array_equal(alone, images[point])
    (sheet,), (figure,) = fetch(server, outputs, "sheet"), fetch(server, outputs, "pareto")
    check_triangle(sheet, images)
    assert figure.shape == (960, 1280, 3)
    files = [str(server.image(saved)) for saved in outputs["save"]["images"]]
    (server.base / "prompt.txt").write_text(TEXT)
    rows = score_files(ScoreConfig(files, str(server.base / "prompt.txt"), ["colourfulness"]))
    best = int(np.argmax([row["colourfulness"] for row in rows]))
    (kept,) = fetch(server, outputs, "kept")
    assert np.array_equal(kept, images[best])
    assert outputs["report"]["text"][0].startswith(f"image {best} (w ")


def check_triangle(sheet: np.ndarray, images: list[np.ndarray]) -> None:
    """Every image is on the sheet; from the first adapter's corner down, rows of 1 to 5, each centred under the one above."""
    probes = np.lib.stride_tricks.sliding_window_view(sheet, (96, 96, 3))[:, :, 0, ::24, ::24].astype(np.int16)
    places = []
    for image in images:
        enlarged = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.NEAREST)).astype(np.int16)
        near = np.argwhere(np.abs(probes - enlarged[::24, ::24]).max(axis=(2, 3, 4)) <= 2)  # rounded twice on the way
        off = [np.abs(sheet[top : top + 96, left : left + 96] - enlarged).sum() for top, left in near]
        places.append(near[int(np.argmin(off))])
    rows = sorted({int(top) for top, _ in places})
    assert len(rows) == 5
    by_row = [sorted(int(left) for top, left in places if top == row) for row in rows]
    assert [len(row) for row in by_row] == [1, 2, 3, 4, 5]
    assert all(abs(np.mean(row) - by_row[0][0]) <= 1 for row in by_row)


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


def files_of(server: ComfyServer) -> set[str]:
    """What runs write: saved images, previews, temporary files."""
    folders = [server.base / name for name in ("output", "temp", "input")]
    return {str(path) for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_sweep_leaves_nothing_behind(server: ComfyServer) -> None:
    """In the middle of its second run or later; then the same graphs are as before, and a whole sweep is as ever."""
    alone, plain = blended(0.25, 0.5, 0.25, seed=21), blended(0.5, 0.5, kl_scale=0.0, seed=21)
    before = [fetch(server, server.run(prompt, PATIENCE))[0] for prompt in (alone, plain)]
    files, start = files_of(server), server.log.stat().st_size
    queued = server.post("/prompt", {"prompt": scored(swept(seed=22, steps=30), "colourfulness", "miniature.warmth")})
    deadline = time.monotonic() + PATIENCE
    while runs_finished(server, start, 30) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.post("/interrupt", {})
    with pytest.raises(PromptError, match="interrupted"):
        server.wait(queued["prompt_id"], PATIENCE)
    history = server.get_json(f"/history/{queued['prompt_id']}")[queued["prompt_id"]]
    assert history["outputs"] == {}
    assert runs_finished(server, start, 30) < POINTS
    assert files_of(server) == files
    assert server.get_json("/prompt")["exec_info"]["queue_remaining"] == 0
    # Another seed first, so that the host's cache of finished nodes answers nothing of the second.
    server.run(blended(0.25, 0.5, 0.25, seed=23), PATIENCE)
    server.post("/free", {"unload_models": False, "free_memory": True})
    after = [fetch(server, server.run(prompt, PATIENCE))[0] for prompt in (alone, plain)]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
    whole = fetch(server, server.run(swept(seed=21), PATIENCE))
    assert len(whole) == POINTS
    assert np.array_equal(whole[7], after[0])  # .25 .5 .25


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
