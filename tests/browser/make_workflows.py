"""Build the templates of ``workflows/`` with the real front end, and their API forms for the server tests.

``python tests/browser/make_workflows.py`` starts a server and a headless browser, places the nodes below as a person would,
and writes ``workflows/NAME.json``, its thumbnail ``workflows/NAME.jpg``, ``tests/server/templates/NAME.json`` and
the pictures of the README and the help pages. Run it again after a change of a node's inputs or of a template.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT / "tests" / "support"))

import comfy_browser  # noqa: E402
import comfy_hosts  # noqa: E402
import comfy_server  # noqa: E402
import make_server_models  # noqa: E402
from PIL import Image  # noqa: E402
from workflow_sources import CHECKPOINT, PADS, TEMPLATES, Template, blend_probe  # noqa: E402

BUILD = """(template) => {
    app.graph.clear()
    const made = {}
    for (const [key, item] of Object.entries(template.nodes)) {
        const node = LiteGraph.createNode(item.type)
        if (!node) throw new Error(`no node ${item.type}`)
        app.graph.add(node)
        node.pos = item.pos
        if (item.title) node.title = item.title
        if (item.color) { node.color = item.color[0]; node.bgcolor = item.color[1] }
        for (const [name, value] of Object.entries(item.widgets ?? {})) {
            const widget = node.widgets.find((candidate) => candidate.name === name)
            if (!widget) throw new Error(`${item.type} has no widget ${name}`)
            widget.value = value
        }
        const least = node.computeSize()
        node.setSize([Math.max(item.size?.[0] ?? 0, least[0]), Math.max(item.size?.[1] ?? 0, least[1])])
        made[key] = node
    }
    for (const [key, item] of Object.entries(template.nodes)) {
        for (const [name, [from, output]] of Object.entries(item.links ?? {})) {
            const slot = made[key].findInputSlot(name)
            const source = made[from].outputs.findIndex((candidate) => candidate.name === output)
            if (slot < 0 || source < 0) throw new Error(`cannot link ${from}.${output} to ${key}.${name}`)
            if (!made[from].connect(source, made[key], slot)) throw new Error(`refused: ${from}.${output} to ${key}.${name}`)
        }
    }
}"""


def build(front: comfy_browser.FrontEnd, template: Template) -> dict[str, Any]:
    """The template in UI form."""
    front.page.evaluate(BUILD, template)
    front.settle()
    front.fit()
    workflow = front.workflow()
    workflow["id"] = template["id"]
    workflow["extra"] = {}
    return workflow


def jpeg(png: bytes, width: int, height: int, path: Path) -> None:
    """A thumbnail of fixed size on the canvas's own background."""
    with Image.open(io.BytesIO(png)) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((width, height), Image.Resampling.LANCZOS)
        sheet = Image.new("RGB", (width, height), picture.getpixel((2, 2)))
        sheet.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
        sheet.save(path, quality=82, optimize=True)


def prepare(base: Path) -> None:
    """Give the server's checkpoint the name the templates ask for, so that nothing is missing in the pictures."""
    checkpoints = base / "models" / "checkpoints"
    (checkpoints / CHECKPOINT).symlink_to(checkpoints / make_server_models.CHECKPOINT)


def write_template(front: comfy_browser.FrontEnd, name: str, template: Template) -> None:
    workflow = build(front, template)
    text = json.dumps(workflow, indent=2, ensure_ascii=True)
    (CHECKOUT / "workflows" / f"{name}.json").write_text(text + "\n")
    prompt = json.dumps(front.prompt(), indent=1, ensure_ascii=True)
    target = CHECKOUT / "tests" / "server" / "templates" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(prompt + "\n")
    front.page.wait_for_timeout(600)
    jpeg(front.page.screenshot(clip=front.fit(20)), 600, 400, CHECKOUT / "workflows" / f"{name}.jpg")
    print(name, len(workflow["nodes"]), "nodes")


def shoot(front: comfy_browser.FrontEnd, path: Path, widest: int, margin: int = 28) -> None:
    """A picture of the whole graph."""
    front.page.wait_for_timeout(600)
    with Image.open(io.BytesIO(front.page.screenshot(clip=front.fit(margin)))) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((widest, widest), Image.Resampling.LANCZOS)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, optimize=True)
    print(path.relative_to(CHECKOUT), path.stat().st_size // 1024, "KiB")


def keep(front: comfy_browser.FrontEnd, *types: str) -> None:
    """Leave only these nodes of the open template."""
    front.page.evaluate(
        "(types) => { for (const n of [...app.graph.nodes]) if (!types.includes(n.type)) app.graph.remove(n) }",
        list(types),
    )


PAD_BOXES = """() => app.graph.nodes.filter((node) => node.type === 'PreferenceWeights').map((node) => {
    const box = node.widgets.at(-1).element.getBoundingClientRect()
    return {x: box.x - 8, y: box.y, width: box.width + 16, height: box.height}
})"""


def stack_pads(front: comfy_browser.FrontEnd, path: Path) -> None:
    """The pads alone, one below the other: the panel that shows help pages is narrow."""
    front.fit()
    front.page.wait_for_timeout(600)
    pads = [Image.open(io.BytesIO(front.page.screenshot(clip=box))) for box in front.page.evaluate(PAD_BOXES)]
    sheet = Image.new("RGB", (pads[0].width, sum(pad.height + 6 for pad in pads) - 6), "white")
    for i, pad in enumerate(pads):
        sheet.paste(pad, (0, sum(other.height + 6 for other in pads[:i])))
    sheet.save(path, optimize=True)
    print(path.relative_to(CHECKOUT), path.stat().st_size // 1024, "KiB")


PROBE: Template = {
    "id": "5b1f6c1e-0d0f-4a52-9d53-3a1c8f1d2bfe",
    "nodes": blend_probe(),
}


def draw_help_pictures(front: comfy_browser.FrontEnd, name: str, template: Template, types: tuple[str, ...]) -> None:
    """A help page's picture: some nodes of a graph."""
    build(front, template)
    keep(front, *types)
    shoot(front, CHECKOUT / "web" / "docs" / "images" / f"{name}.png", 1000)


HELP_PICTURES: tuple[tuple[str, Template, tuple[str, ...]], ...] = (
    ("load_miniature", TEMPLATES["try_it_no_downloads"], ("LoadMiniature", "LoadRewardLoRAs", "PreferenceWeights")),
    (
        "preference_schedule",
        TEMPLATES["preference_schedule"],
        ("PreferenceWeights", "PreferenceSchedule", "BlendedKSampler"),
    ),
    (
        "regional_preference",
        TEMPLATES["regional_preference"],
        ("PreferenceWeights", "RegionalPreference", "SolidMask", "MaskComposite"),
    ),
    ("blend_probe", PROBE, ("LoadRewardLoRAs", "PreferenceWeights", "BlendProbe", "PreviewImage", "PreviewAny")),
)


def draw_pictures(front: comfy_browser.FrontEnd) -> None:
    """The README's and the help pages' pictures."""
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
    keep(front, "LoadRewardLoRAs", "PreferenceWeights", "BlendedKSampler")
    shoot(front, docs / "blended_ksampler.png", 1000)
    keep(front, "LoadRewardLoRAs", "PreferenceWeights")
    shoot(front, docs / "load_reward_loras.png", 720)
    build(front, TEMPLATES["kl_scale_row"])
    keep(front, "KLScaleSampler", "VAEDecode", "ImageStitch", "SaveImage")
    shoot(front, docs / "kl_scale_row.png", 1200)
    build(front, TEMPLATES["stochastic_blend_model"])
    keep(front, "BlendModel", "CFGGuider", "RandomNoise", "KSamplerSelect", "BasicScheduler", "SamplerCustomAdvanced")
    shoot(front, docs / "blend_model.png", 800)
    build(front, PADS)
    stack_pads(front, docs / "preference_pad.png")


def write_all(server: comfy_server.ComfyServer, browser: Any) -> None:
    steps = [partial(write_template, name=name, template=template) for name, template in TEMPLATES.items()]
    helps = [
        partial(draw_help_pictures, name=name, template=template, types=types)
        for name, template, types in HELP_PICTURES
    ]
    for step in [*steps, draw_pictures, *helps]:
        # A page of its own: the front end keeps widget values by node id, also of nodes that were removed.
        with comfy_browser.front_end(browser, server, width=1900, height=1100) as front:
            step(front)
            if front.errors:
                raise SystemExit("\n".join(front.errors))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache, base = Path(folder) / "models", Path(folder) / "base"
        cache.mkdir()
        host = comfy_hosts.find_hosts()[0]
        comfy_server.prepare(base, comfy_server.make_models(host, cache))
        prepare(base)
        with comfy_server.running(host, base) as server, comfy_browser.chromium() as browser:
            write_all(server, browser)


if __name__ == "__main__":
    main()
