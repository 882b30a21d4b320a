"""The README's first steps with the first template, as a person follows them; and the image they get brings all of it back."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from typing import Any

import comfy_server
import pytest
from comfy_browser import FrontEnd
from comfy_server import CHECKOUT
from PIL import Image, PngImagePlugin
from preference_pad import CORNERS, SHORT, SHORTEN, Pad
from workflow_sources import TITLES

TEMPLATE = TITLES["try_it_no_downloads"]
SHOWN = """() => app.graph.nodes.filter((node) => node.type === 'SaveImage')
    .flatMap((node) => app.nodeOutputs[node.id]?.images ?? [])"""
DROP = """([text, name]) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(new File([bytes], name, { type: 'image/png' }))
    const [clientX, clientY] = [500, 500]
    app.canvas.canvas.dispatchEvent(
        new DragEvent('drop', { dataTransfer, clientX, clientY, bubbles: true, cancelable: true }))
}"""


def test_readme_names_what_is_clicked() -> None:
    """Else the next test follows other steps than a person would."""
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    for words in ("Templates", "*Diffusion Blend*", f"**{TEMPLATE}**", "**Run**", "**Preference Weights**"):
        assert words in readme, words


def test_the_chosen_front_end_is_the_one_that_is_open(front: FrontEnd) -> None:
    """COMFYUI_FRONT_END chooses it; else it is the installed package."""
    package = comfy_server.front_end_root()
    if package is None:
        spec = importlib.util.find_spec("comfyui_frontend_package")
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent / "static"
    assert front.server.get("/") == (package / "index.html").read_bytes()


@pytest.fixture
def first_template(front: FrontEnd) -> Pad:
    """Templates, Diffusion Blend, the template; its pad."""
    page = front.page
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_role("dialog").get_by_text("Diffusion Blend").first.click()
    page.get_by_role("dialog").get_by_text(TEMPLATE, exact=True).first.click()
    page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'LoadMiniature')")
    page.get_by_role("dialog").first.wait_for(state="hidden")
    front.page.evaluate(SHORTEN, SHORT)
    front.settle()
    front.fit()
    node = page.evaluate("() => app.graph.nodes.find((node) => node.type === 'PreferenceWeights').id")
    pad = Pad(front, node)
    pad.wait("look.shown && look.labels.length === 3")
    page.wait_for_timeout(300)  # Nodes 2.0 sizes the node once more
    return pad


def run(front: FrontEnd) -> list[dict[str, str]]:
    """Press Run and wait for pictures that were not there before."""
    before = front.page.evaluate(SHOWN)
    front.page.get_by_test_id("queue-button").first.click()
    front.page.wait_for_function(
        f"(before) => {{ const now = ({SHOWN})(); return now.length && JSON.stringify(now) !== JSON.stringify(before) }}",
        arg=before,
        timeout=240_000,
    )
    return front.page.evaluate(SHOWN)


def pixels(front: FrontEnd, saved: list[dict[str, str]]) -> list[bytes]:
    return [Image.open(front.server.image(entry)).convert("RGB").tobytes() for entry in saved]


def graph(front: FrontEnd) -> dict[str, Any]:
    """What a run would send, and where everything lies."""
    workflow = front.workflow()
    return {"prompt": front.prompt(), "places": {node["id"]: node["pos"] for node in workflow["nodes"]}}


def test_from_the_template_to_a_chosen_preference_and_back_from_the_image(front: FrontEnd, first_template: Pad) -> None:
    pad = first_template
    first = run(front)
    assert len(first) == SHORT["LoadMiniature.batch_size"]
    pad.drag(pad.look()["weights"], CORNERS[3][2])  # into a corner
    assert [pad.numbers()[f"weight_{i}"] for i in (1, 2, 3)] == [0, 0, 1]
    corner = run(front)
    assert pixels(front, corner) != pixels(front, first)
    with Image.open(front.server.image(corner[0])) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert '"weight": 1.0' in image.text["diffusion_blend"]
    before = graph(front)
    front.page.evaluate("() => app.graph.clear()")
    data = front.server.image(corner[0]).read_bytes()
    front.page.evaluate(DROP, [base64.b64encode(data).decode(), corner[0]["filename"]])
    front.page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'PreferenceWeights')")
    front.settle()
    assert graph(front) == before
    again = Pad(front, pad.node)
    again.wait(
        f"look.shown && Math.hypot(look.weights[0] - {CORNERS[3][2][0]}, look.weights[1] - {CORNERS[3][2][1]}) < 0.01"
    )
    assert again.numbers() == pad.numbers()
