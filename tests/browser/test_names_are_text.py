"""Names come from a workflow or from a file: the host's menus show them as text, and never read them as HTML."""

from __future__ import annotations

from typing import Any

import preference_pad
import pytest
from comfy_browser import FrontEnd
from make_server_models import LORAS

EVIL = "<img src=x onerror=evil=1>"
PLAIN = "\u2039img src=x onerror=evil=1\u203a"
ENTRIES = ".litecontextmenu .litemenu-entry"
SET_PRESETS = "([id, presets]) => app.graph.getNodeById(id).setProperty('diffusion_blend_presets', presets)"


def entries_of_pad(front: FrontEnd, pad: preference_pad.Pad) -> list[str]:
    """Open the pad's menu."""
    front.page.mouse.click(*pad.on_screen((150, 120))[0], button="right")
    front.page.locator(ENTRIES).first.wait_for()
    return front.page.locator(ENTRIES).all_inner_texts()


def assert_harmless(front: FrontEnd) -> None:
    front.pause(200)  # a picture that is missing fails a moment later
    assert front.page.locator(".litecontextmenu img").count() == 0
    assert front.page.evaluate("() => window.evil") is None


def test_a_preset_and_an_adapter_in_the_pads_menu(front: FrontEnd) -> None:
    pad = preference_pad.make(front, (f"{EVIL}.safetensors", *LORAS[:2]))
    presets = [{"name": EVIL, "numbers": {"weight_1": 0.25, "weight_2": 0.75}}]
    front.page.evaluate(SET_PRESETS, [pad.node, presets])
    entries = entries_of_pad(front, pad)
    assert {f"Lock {PLAIN}", f"Use {PLAIN}", f"Delete {PLAIN}"} <= set(entries)
    assert_harmless(front)
    front.page.locator(ENTRIES, has_text=f"Use {PLAIN}").click()
    assert preference_pad.weights_of(pad.numbers())[:2] == [0.25, 0.75]
    entries_of_pad(front, pad)
    front.page.locator(ENTRIES, has_text=f"Delete {PLAIN}").click()
    assert front.page.evaluate("(id) => app.graph.getNodeById(id).properties.diffusion_blend_presets", pad.node) == []


def test_a_number_that_has_its_adapters_name(front: FrontEnd) -> None:
    """The host puts the names of numbers into menus of its own."""
    pad = preference_pad.make(front, (f"{EVIL}.safetensors", *LORAS[:1]))
    label = "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'weight_1').label"
    assert front.page.evaluate(label, pad.node) == PLAIN


def test_a_file_in_the_list_of_a_row(front: FrontEnd) -> None:
    file = f"{EVIL}.safetensors"
    pad = preference_pad.make(front, LORAS[:1])
    front.page.evaluate(
        """([id, files]) => {
            const widget = app.graph.getNodeById(id).widgets.find((w) => w.name === 'lora_1')
            Object.defineProperty(widget, 'options', { value: { ...widget.options, values: files }, configurable: true })
        }""",
        [pad.loader, ["None", *LORAS, file]],
    )
    front.page.locator(".diffusion-blend-rows [data-part=name]").first.click()
    front.page.locator(ENTRIES).first.wait_for()
    assert front.page.locator(ENTRIES).all_inner_texts() == ["None", *LORAS, f"{PLAIN}.safetensors"]
    assert_harmless(front)
    front.page.locator(ENTRIES).last.click()
    assert preference_pad.read(front, pad.loader, "lora_1") == [file]


@pytest.mark.parametrize("broken", [None, "text", 5, {}, {"name": "a"}, {"name": 5, "numbers": {}}])
def test_what_is_no_preset_is_passed_over(front: FrontEnd, broken: Any) -> None:
    pad = preference_pad.make(front, LORAS[:2])
    presets = [broken, {"name": "mine", "numbers": {"weight_1": 0.25}}]
    front.page.evaluate(SET_PRESETS, [pad.node, presets])
    assert [entry for entry in entries_of_pad(front, pad) if entry.startswith("Use ")] == ["Use mine"]
    front.page.keyboard.press("Escape")
