"""Take the pictures of a search by votes: the view after some votes as a strip, and the shaded pad in a dark and a light theme.

``python tools/make_duel_pictures.py`` runs the template that finds a taste with the real front end. The votes are those of a
person who likes the mixture `LIKED` most. It writes ``docs/images/taste-strip.png`` and ``web/docs/images/votes_on_pad.png``.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT / "tests" / "support"), str(CHECKOUT / "tools")]

import comfy_browser  # noqa: E402
import comfy_hosts  # noqa: E402
import comfy_server  # noqa: E402
import make_workflows  # noqa: E402
from duel_page import NODE, VIEW, Duel  # noqa: E402
from PIL import Image  # noqa: E402
from workflow_taste import find_my_taste_no_downloads  # noqa: E402

LIKED, LIKED_KL = (0.2, 0.15, 0.65), 1.2
"""Softness, compressibility and colourfulness, and the KL scale."""
SHOWN_AFTER = (0, 4, 10)
THEMES = ("dark", "light")
PAIR = f"() => ({NODE})('PreferenceDuelView').properties.diffusion_blend_duel.pair"
PAD = f"({NODE})('PreferenceWeights').widgets.find((widget) => widget.name === 'preference_pad').element"
BOX = f"""() => {{
    const {{ x, y, width, height }} = {PAD}.getBoundingClientRect()
    return {{ x, y, width, height }}
}}"""
LOADED = """(view) => {
    const images = [...document.querySelectorAll(`${view} img`)]
    return images.length > 1 && images.every((image) => image.complete && image.naturalWidth)
}"""
SET_THEME = """async (theme) => {
    await app.extensionManager.setting.set('Comfy.ColorPalette', theme)
    await new Promise((done) => setTimeout(done, 1500))
}"""


def better(pair: list[list[float]]) -> str:
    """The person's vote."""
    losses = [sum((a - b) ** 2 for a, b in zip(option, [*LIKED, LIKED_KL], strict=True)) for option in pair]
    return "1" if losses[0] < losses[1] else "2"


def take(front: comfy_browser.FrontEnd, box: dict[str, float] | None) -> Image.Image:
    if box is None:
        raise RuntimeError("What the picture shows is not on the page.")
    return Image.open(io.BytesIO(front.page.screenshot(clip=box))).convert("RGB")


def side_by_side(pictures: list[Image.Image], gap: int = 12) -> Image.Image:
    """One picture of several of the same height."""
    sheet = Image.new("RGB", (sum(each.width + gap for each in pictures) - gap, pictures[0].height), "white")
    at = 0
    for each in pictures:
        sheet.paste(each, (at, 0))
        at += each.width + gap
    return sheet


def save(picture: Image.Image, path: Path, widest: int) -> None:
    picture.thumbnail((widest, widest), Image.Resampling.LANCZOS)
    picture.quantize(200).save(path, optimize=True)
    print(path.relative_to(CHECKOUT), path.stat().st_size // 1024, "KiB")


def vote_and_take(front: comfy_browser.FrontEnd) -> None:
    """Vote until the last picture is taken."""
    make_workflows.build(front, find_my_taste_no_downloads())
    duel = Duel(front)
    duel.wait("stale")
    duel.part("run").click()
    duel.wait("choose")
    frames = []
    for count in range(max(SHOWN_AFTER) + 1):
        if count in SHOWN_AFTER:
            front.page.wait_for_function(LOADED, arg=VIEW)
            front.pause(300)
            frames.append(take(front, front.page.locator(VIEW).bounding_box()))
        if count < max(SHOWN_AFTER):
            duel.press(better(front.page.evaluate(PAIR)))
    save(side_by_side(frames), CHECKOUT / "docs" / "images" / "taste-strip.png", 1500)
    duel.part("take").click()
    pads = []
    for theme in THEMES:
        front.page.evaluate(SET_THEME, theme)
        front.pause(1000)
        pads.append(take(front, front.page.evaluate(BOX)))
    save(side_by_side(pads), CHECKOUT / "web" / "docs" / "images" / "votes_on_pad.png", 1000)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache, base = Path(folder) / "models", Path(folder) / "base"
        cache.mkdir()
        host = comfy_hosts.find_hosts()[0]
        comfy_server.prepare(base, comfy_server.make_models(host, cache))
        with (
            comfy_server.running(host, base, seconds=600) as server,
            comfy_browser.chromium() as browser,
            comfy_browser.front_end(browser, server, width=2400, height=1500) as front,
        ):
            vote_and_take(front)


if __name__ == "__main__":
    main()
