"""Each template opens in the real front end with nothing missing, and what the Run button sends is what was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy_browser
import comfy_prompts
import pytest
import workflow_blueprint
from comfy_browser import FrontEnd
from comfy_server import CHECKOUT
from make_server_models import LORAS
from workflow_sources import TITLES

NAMES = sorted(TITLES)
BEFORE = sorted(path.stem for path in (Path(__file__).parent / "saved_before").glob("*.json"))
RECORDED = CHECKOUT / "tests" / "server" / "templates"
STATE = """() => ({
    unknown: app.graph.nodes.filter((node) => !LiteGraph.registered_node_types[node.type]).map((node) => node.type),
    red: app.graph.nodes.filter((node) => node.has_errors).map((node) => node.title),
    empty: app.graph.nodes.flatMap((node) => (node.widgets ?? [])
        .filter((widget) => widget.value === undefined || Number.isNaN(widget.value))
        .map((widget) => `${node.title}.${widget.name}`)),
    outside: app.graph.nodes.flatMap((node) => (node.widgets ?? [])
        .filter((widget) => widget.type === 'combo' && !widget.options.values.includes(widget.value))
        .map((widget) => `${node.title}.${widget.name} = ${widget.value}`)),
    toast: document.querySelector('.p-dialog, .p-toast-message')?.innerText ?? '',
})"""

VISIBLE_ON_HOST = """([names, inElements]) => {
    const node = app.graph.nodes[0]
    const shown = inElements
        ? [...document.querySelectorAll(`[data-node-id="${node.id}"] [data-testid=widget-layout-field-label]`)]
            .map((label) => label.textContent.trim())
        : node.widgets.filter((widget) => node.isWidgetVisible(widget)).map((widget) => widget.label ?? widget.name)
    return names.every((name) => shown.includes(name))
}"""


def workflow(name: str, app: bool = False) -> dict[str, Any]:
    """The template with this server's checkpoint picked, as a person would; an app as a graph unless it is wanted as an app."""
    text = (CHECKOUT / "workflows" / f"{TITLES[name]}.json").read_text()
    picked = text.replace("v1-5-pruned-emaonly-fp16.safetensors", comfy_prompts.CHECKPOINT)
    assert picked != text or "LoadMiniature" in text
    made = json.loads(picked)
    if not app:
        made["extra"].pop("linearMode", None)
    return made


def by_type(prompt: dict[str, Any]) -> list[Any]:
    """A prompt without its node ids: each node with the classes it is linked to."""
    return sorted(
        (
            item["class_type"],
            sorted(
                (name, f"{prompt[value[0]]['class_type']}.{value[1]}" if isinstance(value, list) else repr(value))
                for name, value in item["inputs"].items()
            ),
        )
        for item in prompt.values()
    )


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_nothing_missing(front: FrontEnd, name: str) -> None:
    front.load(workflow(name))
    state = front.page.evaluate(STATE)
    assert state == {"unknown": [], "red": [], "empty": [], "outside": [], "toast": ""}
    assert len(front.workflow()["nodes"]) == len(workflow(name)["nodes"])


@pytest.mark.parametrize("name", NAMES)
def test_whole_on_a_laptop_it_has_text(name: str) -> None:
    """On 1366 x 768 the front end fits a graph into 1013 x 576; below 57 % the classic canvas draws no text."""
    rectangles = [(*node["pos"], *node["size"]) for node in workflow(name)["nodes"]]
    width = max(x + width for x, _, width, _ in rectangles) - min(x for x, *_ in rectangles)
    height = max(y + height for _, y, _, height in rectangles) - min(y for _, y, *_ in rectangles) + 30  # a title
    assert min(1013 / width, 576 / height) > 0.57


@pytest.mark.parametrize("name", NAMES)
def test_what_run_sends_is_recorded(front: FrontEnd, name: str) -> None:
    front.load(workflow(name))
    recorded = json.loads((RECORDED / f"{name}.json").read_text())
    for item in recorded.values():
        if item["class_type"] == "CheckpointLoaderSimple":
            item["inputs"]["ckpt_name"] = comfy_prompts.CHECKPOINT
    assert by_type(front.prompt()) == by_type(recorded)


ON_THE_MINIATURE_BEFORE = {"brightness": "softness", "warmth": "compressibility"}
"""Adapters in the templates of today -> those of the templates before, which also had no guidance."""


@pytest.mark.parametrize("name", BEFORE)
def test_files_saved_before_open_with_the_same_meaning(front: FrontEnd, name: str) -> None:
    """Files of version 0.2.0, whose loaders had four slots without switches: what they send only gains the new defaults."""
    text = (Path(__file__).parent / "saved_before" / f"{name}.json").read_text()
    front.open_file(json.loads(text.replace("v1-5-pruned-emaonly-fp16.safetensors", comfy_prompts.CHECKPOINT)))
    text = (RECORDED / f"{name}.json").read_text()
    for today, before in ON_THE_MINIATURE_BEFORE.items():
        text = text.replace(f"miniature/{today}.", f"miniature/{before}.").replace(
            f"miniature.{today}", f"miniature.{before}"
        )
    recorded = json.loads(text)
    for item in recorded.values():
        if item["class_type"] == "CheckpointLoaderSimple":
            item["inputs"]["ckpt_name"] = comfy_prompts.CHECKPOINT
        if item["class_type"] == "BlendedKSampler" and "LoadMiniature" in text:
            item["inputs"]["cfg"] = 1
    assert by_type(front.prompt()) == by_type(recorded)


def test_runs_from_the_front_end(front: FrontEnd, tmp_path: Path) -> None:
    """Pick two LoRAs, press Run, and the node shows its image."""
    front.load(workflow("blend_two_adapters"))
    prompt = comfy_prompts.for_tests(front.prompt())
    front.page.evaluate(
        """(prompt) => {
            for (const [id, item] of Object.entries(prompt)) {
                for (const widget of app.graph.getNodeById(id).widgets ?? []) {
                    if (widget.name in item.inputs) widget.value = item.inputs[widget.name]
                }
            }
        }""",
        prompt,
    )
    before = set(front.server.get_json("/history"))
    front.page.get_by_test_id("queue-button").first.click()
    front.page.wait_for_function(
        "() => app.graph.nodes.some((node) => node.type === 'SaveImage' && (app.nodeOutputs[node.id]?.images ?? []).length)",
        timeout=60_000,
    )
    (run,) = set(front.server.get_json("/history")) - before
    assert front.server.get_json(f"/history/{run}")[run]["status"]["status_str"] == "success"


def test_the_templates_dialog_shows_them(front: FrontEnd) -> None:
    front.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    front.page.get_by_role("dialog").get_by_text("Diffusion Blend").first.click()
    for name in TITLES.values():
        front.page.get_by_text(name, exact=True).first.wait_for(timeout=20_000)
    front.page.keyboard.press("Escape")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("app_")])
def test_an_app_shows_its_inputs_with_the_pad(front: FrontEnd, name: str) -> None:
    front.open_file(workflow(name, app=True), name)
    linear = workflow(name)["extra"]["linearData"]
    kinds = {str(node["id"]): node["type"] for node in workflow(name)["nodes"]}
    assert "PreferenceWeights" in [kinds[node] for node, _ in linear["inputs"]]
    assert [kinds[node] for node in linear["outputs"]] == ["SaveImage"]
    known = front.page.evaluate(
        "(inputs) => inputs.map(([id, name]) => app.graph.getNodeById(id).widgets.some((w) => w.name === name))",
        linear["inputs"],
    )
    assert all(known), linear["inputs"]
    pad = front.page.locator(".diffusion-blend-pad").first
    pad.wait_for(state="visible")
    assert front.page.evaluate("() => app.rootGraph.extra.linearMode") is True
    front.page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")


def test_the_blueprint_is_offered_and_is_the_whole_blend(front: FrontEnd, renderer: str) -> None:
    offered = front.server.get_json("/global_subgraphs")
    (key,) = [key for key, entry in offered.items() if entry["name"] == workflow_blueprint.NAME]
    front.load(json.loads(front.server.get_json(f"/global_subgraphs/{key}")["data"]))
    names = front.page.evaluate("() => app.graph.nodes[0].inputs.map((input) => input.name)")
    assert set(names) == {name for _, names in workflow_blueprint.INPUTS for name in names}
    assert len(front.workflow()["nodes"]) == 1
    wanted = [name for _, names in workflow_blueprint.INPUTS for name in names]
    numbers = [name for name in wanted if name not in workflow_blueprint.INPUTS[0][1]]
    front.page.wait_for_function(VISIBLE_ON_HOST, arg=[numbers, renderer == comfy_browser.NODES_2])
    front.page.evaluate(
        """(file) => {
            const widget = app.graph.nodes[0].widgets.find((w) => w.name === 'lora_2')
            widget.value = widget.options.values.find((value) => value.endsWith(file))
        }""",
        LORAS[1],
    )
    front.page.wait_for_function(
        "(name) => app.graph.nodes[0].subgraph.nodes.find((node) => node.type === 'PreferenceWeights').widgets"
        ".find((w) => w.name === 'preference_pad').element.textContent.includes(name)",
        arg=LORAS[1].removesuffix(".safetensors"),
    )
    prompt = front.prompt()
    kinds = {item["class_type"]: item["inputs"] for item in prompt.values()}
    assert set(kinds) == {"LoadRewardLoRAs", "PreferenceWeights", "BlendedKSampler"}
    assert {"reward_loras", "preference"} <= set(kinds["BlendedKSampler"])
    assert kinds["LoadRewardLoRAs"]["lora_2"].endswith(LORAS[1])
