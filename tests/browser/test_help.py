"""Every node's help page opens from the node, and the front end speaks the languages of ``locales/``."""

from __future__ import annotations

import json
from collections.abc import Iterator

import comfy_browser
import pytest
from comfy_browser import FrontEnd
from comfy_server import CHECKOUT, ComfyServer
from playwright.sync_api import Browser

CONTRACT = json.loads((CHECKOUT / "tests" / "server" / "object_info.json").read_text())
CHINESE = json.loads((CHECKOUT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_help_opens_from_the_node(front: FrontEnd, name: str) -> None:
    """Select the node and press its info button: the page is shown, with its pictures."""
    front.page.evaluate(
        """(name) => {
            const node = LiteGraph.createNode(name)
            app.graph.add(node)
            app.canvas.deselectAll()
            app.canvas.selectNode(node)
        }""",
        name,
    )
    front.settle()
    front.page.get_by_test_id("info-button").first.click()
    front.page.wait_for_function(
        """(title) => {
            const help = document.querySelector('.node-help-content')
            const pictures = [...(help?.querySelectorAll('img') ?? [])]
            return help?.querySelector('h1')?.innerText === title && help.innerText.includes('Common mistakes')
                && pictures.length > 0 && pictures.every((picture) => picture.naturalWidth > 0)
        }""",
        arg=CONTRACT[name]["display_name"],
    )


@pytest.fixture
def chinese(browser: Browser, server: ComfyServer) -> Iterator[FrontEnd]:
    server.post("/settings", {"Comfy.Locale": "zh"})
    try:
        with comfy_browser.front_end(browser, server) as front:
            yield front
    finally:
        server.post("/settings", {"Comfy.Locale": "en"})


def test_chinese(chinese: FrontEnd) -> None:
    titles = chinese.page.evaluate(
        "(names) => Object.fromEntries(names.map((name) => [name, LiteGraph.createNode(name).title]))", sorted(CHINESE)
    )
    assert titles == {name: node["display_name"] for name, node in CHINESE.items()}
    labels = chinese.page.evaluate(
        "() => LiteGraph.createNode('PreferenceWeights').widgets.map((widget) => widget.label).filter(Boolean)"
    )
    inputs = CHINESE["PreferenceWeights"]["inputs"]
    assert labels[:5] == [inputs[f"weight_{number}"]["name"] for number in (1, 2, 3, 4)] + [inputs["kl_scale"]["name"]]
