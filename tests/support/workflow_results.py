"""Pictures that the templates make on the miniature: the templates' thumbnails and the help pages' pictures of results."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from copy import deepcopy

from comfy_prompts import Prompt, node
from comfy_server import ComfyServer
from PIL import Image, ImageDraw, ImageFont
from workflow_parts import MINIATURE, MINIATURE_PROMPT

SECONDS = 3600  # seconds for one run on a busy machine
SIDE = 96
"""Side of a picture in a row, in pixels: 32 enlarged three times."""
COVER = 576
"""Side of a thumbnail, in pixels: whole multiples of 32 in 2, 3, 4 and 6 columns."""
GAP = 6
INK, PAPER = "#222222", "#fcfcfc"
PAIR = ("colourfulness", "brightness")
"""Two adapters of the miniature that differ to the eye: strong colours, and bright ones."""
Weights = Sequence[float]


def for_miniature(prompt: Prompt, batch: int, adapters: Sequence[str] = PAIR) -> Prompt:
    """Return a template's graph in API form on the miniature, with its settings and these adapters."""
    made = deepcopy(prompt)
    (latent,) = nodes_of(made, "EmptyLatentImage") or [""]
    (checkpoint,) = nodes_of(made, "CheckpointLoaderSimple") or nodes_of(made, "LoadMiniature")
    made.pop(latent, None)
    made[checkpoint] = node("LoadMiniature", batch_size=batch)
    texts = iter((MINIATURE_PROMPT, ""))  # the positive one comes first
    settings = {"steps": 12, "cfg": 2.0}
    for item in made.values():
        inputs = item["inputs"]
        inputs |= {name: value for name, value in settings.items() if name in inputs}
        inputs |= {name: [checkpoint, 3] for name, value in inputs.items() if value == [latent, 0]}
        if item["class_type"] == "CLIPTextEncode":
            inputs["text"] = next(texts)
        if item["class_type"] == "LoadRewardLoRAs":
            inputs |= {f"lora_{i}": f"miniature/{name}.safetensors" for i, name in enumerate(adapters, 1)}
    return made


def pictures(server: ComfyServer, prompt: Prompt) -> list[list[Image.Image]]:
    """Run a graph; returns the pictures of every node that saves, in the prompt's order."""
    outputs = server.run(prompt, SECONDS)
    found = []
    for key in prompt:
        saved = outputs.get(key, {}).get("images", [])
        if saved:
            found.append([Image.open(io.BytesIO(server.image(entry).read_bytes())).convert("RGB") for entry in saved])
    return found


def nodes_of(prompt: Prompt, class_type: str) -> list[str]:
    return [key for key, item in prompt.items() if item["class_type"] == class_type]


def with_weights(prompt: Prompt, *weights: Weights) -> Prompt:
    """Return the graph with other numbers in its Preference Weights, the first node's first."""
    made = deepcopy(prompt)
    for key, numbers in zip(nodes_of(made, "PreferenceWeights"), weights, strict=True):
        made[key]["inputs"] |= {f"weight_{i}": value for i, value in enumerate(numbers, start=1)}
    return made


def rows(named: Sequence[tuple[str, Sequence[Image.Image]]], side: int = SIDE) -> Image.Image:
    """Draw rows of pictures with a name above each row."""
    font = ImageFont.load_default(15)
    line = 22
    columns = max(len(row) for _, row in named)
    step = side + GAP
    sheet = Image.new("RGB", (columns * step + GAP, len(named) * (step + line) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (name, row) in enumerate(named):
        top = number * (step + line) + line
        draw.text((GAP, top - line + 3), name, INK, font)
        for column, picture in enumerate(row):
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (GAP + column * step, top))
    return sheet


def halved(picture: Image.Image, side: int) -> Image.Image:
    """Draw a dashed line down the middle of a picture."""
    made = picture.resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(made)
    for top in range(0, side, 8):
        draw.line((side // 2, top, side // 2, top + 3), PAPER)
    return made


def tiled(images: Sequence[Image.Image], columns: int, side: int) -> Image.Image:
    """Arrange pictures in reading order."""
    step = side + GAP
    sheet = Image.new("RGB", (columns * step - GAP, -(-len(images) // columns) * step - GAP), PAPER)
    for number, picture in enumerate(images):
        place = number % columns * step, number // columns * step
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return sheet


def cover(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Fill a square with pictures, edge to edge."""
    if len(images) != columns * columns:
        raise ValueError(f"{len(images)} pictures do not fill {columns} x {columns}.")
    side = COVER // columns
    sheet = Image.new("RGB", (side * columns, side * columns))
    for number, picture in enumerate(images):
        place = number % columns * side, number // columns * side
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), place)
    return sheet


def each_picture(prompt: Prompt) -> Prompt:
    """Return a sweep's graph that saves its pictures one by one in place of a sheet."""
    left_out = ("PreferenceGrid", "SaveImage", "ScoreImages", "LoadRewardModel")
    made = {key: item for key, item in deepcopy(prompt).items() if item["class_type"] not in left_out}
    (decode,) = nodes_of(made, "VAEDecode")
    return made | {"save": node("SaveImage", images=[decode, 0], filename_prefix="cover")}


Run = Callable[[Prompt], list[list[Image.Image]]]
FIRST, SECOND = (f"{name} alone" for name in PAIR)


def one_after_the_other(run: Run, prompt: Prompt, mixture: str, *changes: Sequence[Weights]) -> dict[str, Image.Image]:
    """Draw three rows: the first adapter, the graph itself, the second adapter."""
    graph = for_miniature(prompt, 6)
    names = (FIRST, mixture, SECOND)
    made = [run(with_weights(graph, *weights))[0] for weights in changes]
    return {"": rows(list(zip(names, made, strict=True))), "cover": cover([one for row in made for one in row[:3]], 3)}


def _mixed(mixture: str) -> Callable[[Run, Prompt], dict[str, Image.Image]]:
    def draw(run: Run, prompt: Prompt) -> dict[str, Image.Image]:
        return one_after_the_other(run, prompt, mixture, [(1, 0, 0)], [(0.5, 0.5, 0)], [(0, 1, 0)])

    return draw


def _between(mixture: str) -> Callable[[Run, Prompt], dict[str, Image.Image]]:
    """Draw the rows of a graph with two preferences."""

    def draw(run: Run, prompt: Prompt) -> dict[str, Image.Image]:
        first, second = (1, 0, 0), (0, 1, 0)
        return one_after_the_other(run, prompt, mixture, [first, first], [first, second], [second, second])

    return draw


def _halves(run: Run, prompt: Prompt) -> dict[str, Image.Image]:
    """Draw an exaggerated example with shapes of one colour on both sides and the edge of the mask."""
    graph = for_miniature(prompt, 4)
    for item in graph.values():
        changes = {"kl_scale": 1.5, "seed": 2}
        if item["inputs"].get("text") == MINIATURE_PROMPT:
            changes["text"] = "three red circles"
        item["inputs"] |= {name: value for name, value in changes.items() if name in item["inputs"]}
    first, second = (1, 0, 0), (0, 1, 0)
    left, mixed, right = (
        run(with_weights(graph, *ends))[0] for ends in ((first, first), (first, second), (second, second))
    )
    names = f"{PAIR[0]} everywhere", f"{PAIR[0]} left of the line, {PAIR[1]} right of it", f"{PAIR[1]} everywhere"
    sheet = rows([(names[0], left), (names[1], [halved(one, 160) for one in mixed]), (names[2], right)], 160)
    return {"": sheet, "cover": cover(mixed, 2)}


def _sheet(adapters: Sequence[str] = PAIR) -> Callable[[Run, Prompt], dict[str, Image.Image]]:
    """Return the sheet that the graph itself draws."""

    def draw(run: Run, prompt: Prompt) -> dict[str, Image.Image]:
        graph = for_miniature(prompt, 1, adapters)
        graph[nodes_of(graph, "PreferenceGrid")[0]]["inputs"]["thumbnail_size"] = 160
        one_by_one = run(each_picture(graph))[0]
        return {"": run(graph)[0][0], "cover": cover([*one_by_one[:2], *one_by_one[-2:]], 2)}

    return draw


def _triangle(run: Run, prompt: Prompt) -> dict[str, Image.Image]:
    """Draw the corners, and the middle below them."""
    graph = for_miniature(prompt, 4, MINIATURE)
    named = [(f"{name} alone", tuple(float(i == at) for i in range(3))) for at, name in enumerate(MINIATURE)]
    named.append(("a third of each", (0.34, 0.33, 0.33)))
    made = [(name, run(with_weights(graph, weights))[0]) for name, weights in named]
    return {"": rows(made, 80), "cover": cover([one for _, row in made for one in row], 4)}


def _nine(run: Run, prompt: Prompt) -> dict[str, Image.Image]:
    made = run(prompt)[0]
    return {"": tiled(made, 3, 128), "cover": cover(made, 3)}


def _sweep(run: Run, prompt: Prompt) -> dict[str, Image.Image]:
    """Return both pictures of the graph."""
    sheet, pareto = run(prompt)
    one_by_one = run(each_picture(prompt))[0]
    firsts = one_by_one[:: len(one_by_one) // 15]  # of the fifteen preferences
    return {"": sheet[0], "pareto": pareto[0], "cover": cover(firsts[:9], 3)}


def _baked(run: Run, prompt: Prompt) -> dict[str, Image.Image]:
    """Draw a blend beside the files that keep it. The graph's last preference is the new LoRA alone."""
    mixtures = ((1, 0, 0), (0.5, 0.5, 0), (0, 1, 0))
    drawn = one_after_the_other(run, prompt, "half of each, in one file", *([one, (1, 0, 0)] for one in mixtures))
    merged = with_weights(for_miniature(prompt, 6), mixtures[1], (1, 0, 0))
    ((bake,), (sampler,)) = nodes_of(merged, "BakeBlend"), nodes_of(merged, "BlendedKSampler")
    distilled, blended = deepcopy(merged), deepcopy(merged)
    texts = {name: merged[sampler]["inputs"][name] for name in ("positive", "negative", "latent_image")}
    distilled[bake]["inputs"] |= {
        "method": "distil",
        "iterations": 300,
        "learning_rate": 0.001,
        "trajectories": 16,
    } | texts
    blended[sampler]["inputs"] |= {name: merged[bake]["inputs"][name] for name in ("reward_loras", "preference")}
    for unused in (bake, *nodes_of(merged, "PreviewAny"), *nodes_of(merged, "PreferenceWeights")[1:]):
        del blended[unused]
    graphs = {
        "the blend: two model calls a step": blended,
        "merge: one file, one call": merged,
        "distil: one file, one call": distilled,
    }
    return drawn | {"": rows([(name, run(graph)[0]) for name, graph in graphs.items()])}


def _duel(run: Run, prompt: Prompt) -> dict[str, Image.Image]:
    """Draw the pictures of the first two preferences."""
    made = {key: item for key, item in deepcopy(prompt).items() if item["class_type"] != "PreferenceDuelView"}
    (decode,) = nodes_of(made, "VAEDecode")
    images = run(made | {"save": node("SaveImage", images=[decode, 0], filename_prefix="cover")})[0]
    return {"": tiled(images, 4, 128), "cover": cover(images[:2] + images[4:6], 2)}


DRAW: dict[str, Callable[[Run, Prompt], dict[str, Image.Image]]] = {
    "try_it_no_downloads": _nine,
    "blend_two_adapters": _mixed("half of each"),
    "kl_scale_row": _sheet(PAIR[:1]),
    "triangle_of_three": _triangle,
    "preference_schedule": _between("from the first to the second over the run"),
    "regional_preference": _halves,
    "any_two_style_loras": _sheet(),
    "sweep_with_pareto": _sweep,
    "stochastic_blend_model": _mixed("half of each, drawn step by step"),
    "app_try_it": _nine,
    "app_two_loras": _mixed("half of each"),
    "find_my_taste_no_downloads": _duel,
    "keep_this_blend_as_one_lora": _baked,
    "two_style_loras_with_their_words": _mixed("half of each"),
}
"""Template -> its pictures: "cover" is the thumbnail, the others are for the help pages."""
