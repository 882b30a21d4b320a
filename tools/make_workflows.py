"""Build the templates of ``workflows/`` with the real front end, and their API forms for the server tests.

``python tools/make_workflows.py`` starts a server and a headless browser and places the nodes in columns. It writes
``workflows/TITLE.json``, ``tests/server/templates/NAME.json`` and the pictures of graphs in the README and the help pages. With
names (of a template, or of a picture with ``.png``) it makes only these. Run it again after a change of a node's inputs or of a
template. Then run ``make_results.py`` for the thumbnails and the pictures of results.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests" / "support"))

import comfy_browser  # noqa: E402
import comfy_hosts  # noqa: E402
import comfy_server  # noqa: E402
import make_server_models  # noqa: E402
import workflow_blueprint  # noqa: E402
from PIL import Image  # noqa: E402
from workflow_parts import CHECKPOINT, Template  # noqa: E402
from workflow_pictures import blend_probe, kl_scale_sampler, pads, regional  # noqa: E402
from workflow_sources import TEMPLATES, TITLES  # noqa: E402

BUILD = """(template) => {
    app.graph.clear()
    const made = {}
    for (const [key, item] of Object.entries(template.nodes)) {
        const node = LiteGraph.createNode(item.type)
        if (!node) throw new Error(`no node ${item.type}`)
        app.graph.add(node)
        if (item.title) node.title = item.title
        if (item.models) node.properties.models = item.models
        if (item.color) { node.color = item.color[0]; node.bgcolor = item.color[1] }
        for (const [name, value] of Object.entries(item.widgets)) {
            const widget = node.widgets.find((candidate) => candidate.name === name)
            if (!widget) throw new Error(`${item.type} has no widget ${name}`)
            widget.value = value
        }
        made[key] = node
    }
    for (const [key, item] of Object.entries(template.nodes)) {
        for (const [name, [from, output]] of Object.entries(item.links)) {
            const slot = made[key].findInputSlot(name)
            const source = made[from].outputs.findIndex((candidate) => candidate.name === output)
            if (slot < 0 || source < 0) throw new Error(`cannot link ${from}.${output} to ${key}.${name}`)
            if (!made[from].connect(source, made[key], slot)) throw new Error(`refused: ${from}.${output} to ${key}.${name}`)
        }
    }
    return Object.fromEntries(Object.entries(made).map(([key, node]) => [key, node.id]))
}"""
# After the nodes have shown and hidden their widgets.
PLACE = """([template, ids]) => {
    let x = 0
    for (const [width, keys] of template.columns) {
        let y = 100
        for (const key of keys) {
            const item = template.nodes[key], node = app.graph.getNodeById(ids[key])
            node.pos = [x, y]
            node.setSize([width, Math.max(item.height, node.computeSize()[1])])
            // The next one's title is 30; Nodes 2.0 draws every node higher, and writes the extension's name below ours.
            y += node.size[1] + (item.color ? 90 : 60)
        }
        x += width + 30
    }
}"""


def build(front: comfy_browser.FrontEnd, template: Template) -> dict[str, Any]:
    """Return the template in UI form."""
    ids = front.page.evaluate(BUILD, template)
    front.pause(600)
    front.page.evaluate(PLACE, [template, ids])
    front.settle()
    front.fit()
    workflow = front.workflow()
    workflow["id"] = template["id"]
    workflow["extra"] = {}
    if "app" in template:
        inputs = [[ids[key], name] for key, name in template["app"]["inputs"]]
        outputs = [ids[key] for key in template["app"]["outputs"]]
        mode = {"linearMode": True} if template["app"].get("opens", True) else {}
        workflow["extra"] = mode | {"linearData": {"inputs": inputs, "outputs": outputs}}
    return workflow


def prepare(base: Path) -> None:
    """Give the server's checkpoint the name in the templates, so that the pictures show no missing file."""
    checkpoints = base / "models" / "checkpoints"
    (checkpoints / CHECKPOINT).symlink_to(checkpoints / make_server_models.CHECKPOINT)


def write_template(front: comfy_browser.FrontEnd, name: str, template: Template) -> None:
    workflow = build(front, template)
    text = json.dumps(workflow, indent=2, ensure_ascii=True)
    (CHECKOUT / "workflows" / f"{TITLES[name]}.json").write_text(text + "\n")
    prompt = json.dumps(front.prompt(), indent=1, ensure_ascii=True)
    target = CHECKOUT / "tests" / "server" / "templates" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(prompt + "\n")
    print(name, len(workflow["nodes"]), "nodes")


def write_blueprint(front: comfy_browser.FrontEnd) -> None:
    """Write the graph of the whole blend as one node."""
    ids = front.page.evaluate(BUILD, workflow_blueprint.GRAPH)
    front.pause(600)
    front.page.evaluate(PLACE, [workflow_blueprint.GRAPH, ids])
    front.page.evaluate(workflow_blueprint.WRAP, [ids, workflow_blueprint.NAME, workflow_blueprint.INPUTS])
    front.pause(600)
    workflow = front.workflow() | {"id": workflow_blueprint.GRAPH["id"]}
    workflow["extra"] = {
        "BlueprintDescription": workflow_blueprint.DESCRIPTION,
        "BlueprintSearchAliases": workflow_blueprint.ALIASES,
    }
    target = CHECKOUT / "subgraphs" / f"{workflow_blueprint.NAME}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(workflow, indent=2, ensure_ascii=True) + "\n")
    print(target.relative_to(CHECKOUT))


def shoot(front: comfy_browser.FrontEnd, path: Path, widest: int, margin: int = 28) -> None:
    """Take a picture of the whole graph."""
    # The front end's own first graph needs models that this server does not have, and the message about them stays.
    front.page.add_style_tag(content="[data-testid=error-overlay] { display: none }")
    front.page.wait_for_timeout(600)
    with Image.open(io.BytesIO(front.page.screenshot(clip=front.fit(margin)))) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((widest, widest), Image.Resampling.LANCZOS)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, optimize=True)
    print(path.relative_to(CHECKOUT), path.stat().st_size // 1024, "KiB")


def keep(front: comfy_browser.FrontEnd, *types: str) -> None:
    """Remove all other nodes of the open template."""
    front.page.evaluate(
        "(types) => { for (const n of [...app.graph.nodes]) if (!types.includes(n.type)) app.graph.remove(n) }",
        list(types),
    )


PAD_BOXES = """() => app.graph.nodes.filter((node) => node.type === 'PreferenceWeights').map((node) => {
    const box = node.widgets.at(-1).element.getBoundingClientRect()
    return {x: box.x - 8, y: box.y, width: box.width + 16, height: box.height}
})"""


def stack_pads(front: comfy_browser.FrontEnd, path: Path) -> None:
    """Arrange only the pads, one below the other, because the panel of the help pages is narrow."""
    front.fit()
    front.page.wait_for_timeout(600)
    pads = [Image.open(io.BytesIO(front.page.screenshot(clip=box))) for box in front.page.evaluate(PAD_BOXES)]
    sheet = Image.new("RGB", (pads[0].width, sum(pad.height + 6 for pad in pads) - 6), "white")
    for i, pad in enumerate(pads):
        sheet.paste(pad, (0, sum(other.height + 6 for other in pads[:i])))
    sheet.save(path, optimize=True)
    print(path.relative_to(CHECKOUT), path.stat().st_size // 1024, "KiB")


def draw_help_pictures(front: comfy_browser.FrontEnd, name: str, template: Template, types: tuple[str, ...]) -> None:
    """Take a help page's picture of some nodes of a graph."""
    build(front, template)
    keep(front, *types)
    shoot(front, CHECKOUT / "web" / "docs" / "images" / f"{name}.png", 1000)


SAMPLING = ("LoadRewardLoRAs", "PreferenceWeights", "BlendedKSampler")
HELP_PICTURES: tuple[tuple[str, Template, tuple[str, ...]], ...] = (
    ("load_miniature", TEMPLATES["try_it_no_downloads"], ("LoadMiniature", "LoadRewardLoRAs", "PreferenceWeights")),
    ("kl_scale_sampler", kl_scale_sampler(), ("LoadRewardLoRAs", "KLScaleSampler")),
    (
        "blend_model",
        TEMPLATES["stochastic_blend_model"],
        ("BlendModel", "CFGGuider", "RandomNoise", "KSamplerSelect", "BasicScheduler", "SamplerCustomAdvanced"),
    ),
    (
        "preference_schedule",
        TEMPLATES["preference_schedule"],
        ("PreferenceWeights", "PreferenceSchedule", "BlendedKSampler"),
    ),
    (
        "bake_blend",
        TEMPLATES["keep_this_blend_as_one_lora"],
        ("LoadRewardLoRAs", "PreferenceWeights", "BakeBlend", "PreviewAny"),
    ),
    ("preference_duel", TEMPLATES["find_my_taste_no_downloads"], ("PreferenceDuel", "PreferenceDuelView")),
    (
        "regional_preference",
        regional(),
        ("LoadRewardLoRAs", "PreferenceWeights", "RegionalPreference", "SolidMask"),
    ),
)


def draw_blend(front: comfy_browser.FrontEnd) -> None:
    """Take the README's picture, with two LoRAs chosen, and the parts of it that two help pages show."""
    docs = CHECKOUT / "web" / "docs" / "images"
    build(front, TEMPLATES["blend_two_adapters"])
    front.page.evaluate(
        """(files) => {
            const loader = app.graph.nodes.find((node) => node.type === 'LoadRewardLoRAs')
            loader.widgets[0].value = files[0]
            loader.widgets[2].value = files[1]
            const preference = app.graph.nodes.find((node) => node.type === 'PreferenceWeights')
            preference.widgets[0].value = 0.35
            preference.widgets[1].value = 0.65
        }""",
        list(make_server_models.LORAS),
    )
    shoot(front, CHECKOUT / "docs" / "images" / "graph.png", 1900)
    keep(front, *SAMPLING)
    shoot(front, docs / "blended_ksampler.png", 1000)
    keep(front, *SAMPLING[:2])
    shoot(front, docs / "load_reward_loras.png", 720)


def draw_pads(front: comfy_browser.FrontEnd) -> None:
    build(front, pads())
    stack_pads(front, CHECKOUT / "web" / "docs" / "images" / "preference_pad.png")


def draw_probe(front: comfy_browser.FrontEnd) -> None:
    """Run a graph and take a picture of Blend Probe with its results."""
    build(front, blend_probe())
    front.page.get_by_test_id("queue-button").first.click()
    front.page.wait_for_function(
        "() => app.graph.nodes.some((node) => node.type === 'PreviewImage' && (app.nodeOutputs[node.id]?.images ?? []).length)",
        timeout=1_800_000,
    )
    front.pause(2000)
    keep(front, "LoadRewardLoRAs", "PreferenceWeights", "BlendProbe", "PreviewImage", "PreviewAny")
    shoot(front, CHECKOUT / "web" / "docs" / "images" / "blend_probe.png", 1000)


def write_all(server: comfy_server.ComfyServer, browser: Any, only: list[str]) -> None:
    steps = {name: partial(write_template, name=name, template=template) for name, template in TEMPLATES.items()}
    steps |= {
        f"{name}.png": partial(draw_help_pictures, name=name, template=template, types=types)
        for name, template, types in HELP_PICTURES
    }
    steps |= {
        "blueprint": write_blueprint,
        "graph.png": draw_blend,
        "preference_pad.png": draw_pads,
        "blend_probe.png": draw_probe,
    }
    unknown = sorted(set(only) - set(steps))
    if unknown:
        raise SystemExit(f"Nothing is called {', '.join(unknown)}; there are {', '.join(steps)}.")
    for name in only or steps:
        # Open a new page, because the front end stores widget values by node id, also of removed nodes.
        with comfy_browser.front_end(browser, server, width=1900, height=1100) as front:
            steps[name](front)
            if front.errors:
                raise SystemExit("\n".join(front.errors))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache, base = Path(folder) / "models", Path(folder) / "base"
        cache.mkdir()
        host = comfy_hosts.find_hosts()[0]
        comfy_server.prepare(base, comfy_server.make_models(host, cache))
        prepare(base)
        with comfy_server.running(host, base, seconds=600) as server, comfy_browser.chromium() as browser:
            write_all(server, browser, sys.argv[1:])


if __name__ == "__main__":
    main()
