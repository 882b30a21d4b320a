"""The duel's view on a page of the front end."""

from __future__ import annotations

import time
from typing import Any

import make_workflows
from comfy_browser import FrontEnd
from diffusion_blend.preference_learning.landscape import landscape
from diffusion_blend.preference_learning.search import Search
from diffusion_blend.preference_learning.votes import FIRST, Option, Vote
from playwright.sync_api import Page
from workflow_taste import find_my_taste_no_downloads

VIEW = ".diffusion-blend-duel"
PATIENCE = 120_000
NODE = "(type) => app.graph.nodes.find((node) => node.type === type)"
READ = f"([type, name]) => ({NODE})(type).widgets.find((widget) => widget.name === name).value"
WRITE = f"""([type, name, value]) => {{
    const widget = ({NODE})(type).widgets.find((widget) => widget.name === name)
    widget.value = value
    widget.callback?.(value)
}}"""

FILES = [f"{name}.safetensors" for name in ("soft", "vivid", "warm", "bright", "plain")]
MAKE = """([files, duel]) => {
    app.graph.clear()
    const [loader, node, asking, view] = ['LoadRewardLoRAs', 'PreferenceWeights', 'PreferenceDuel', 'PreferenceDuelView']
        .map((type) => LiteGraph.createNode(type))
    for (const made of [loader, node, asking, view]) app.graph.add(made)
    for (const [i, made] of [loader, node, asking, view].entries()) made.pos = [100 + 420 * i, 100]
    for (let i = 1; i <= 8; i++) {
        loader.widgets.find((w) => w.name === `lora_${i}`).value = files[i - 1] ?? 'None'
        node.widgets.find((w) => w.name === `weight_${i}`).value = i <= files.length ? 1 / files.length : 0
    }
    loader.connect(0, node, node.findInputSlot('reward_loras'))
    loader.connect(0, asking, asking.findInputSlot('reward_loras'))
    asking.connect(3, view, view.findInputSlot('duel'))
    view.properties.diffusion_blend_duel = duel
    return node.id
}"""


class Duel:
    """The view on a page."""

    def __init__(self, front: FrontEnd, page: Page | None = None) -> None:
        self.front = front
        self.page = page or front.page

    def part(self, name: str) -> Any:
        return self.page.locator(f"{VIEW} [data-part={name}]")

    def wait(self, phase: str) -> None:
        self.page.wait_for_function(
            "([view, phase]) => document.querySelector(view)?.dataset.phase === phase",
            arg=[VIEW, phase],
            timeout=PATIENCE,
        )

    def read(self, name: str = "votes", node: str = "PreferenceDuel") -> Any:
        return self.page.evaluate(READ, [node, name])

    def write(self, name: str, value: Any, node: str = "PreferenceDuel") -> None:
        self.page.evaluate(WRITE, [node, name, value])

    @property
    def outcomes(self) -> str:
        return "".join(line.split(" kl ")[1].split()[1] for line in self.read().splitlines())

    def press(self, key: str) -> None:
        """Vote by a key and wait for the next pair."""
        votes = self.read()
        self.page.locator(VIEW).focus()
        self.page.keyboard.press(key)
        assert self.read() != votes
        self.wait("choose")

    def click(self, part: str) -> None:
        votes = self.read()
        self.part(part).click()
        assert self.read() != votes
        self.wait("choose")

    def runs(self) -> int:
        """How many runs the server has ended. A pair is shown before its run has ended, so wait for the queue."""
        deadline = time.monotonic() + PATIENCE / 1000
        while self.waiting():
            assert time.monotonic() < deadline, "the queue does not become empty"
            time.sleep(0.05)
        return len(self.front.server.get_json("/history"))

    def waiting(self) -> int:
        queue = self.front.server.get_json("/queue")
        return len(queue["queue_running"]) + len(queue["queue_pending"])


def load(front: FrontEnd, steps: int = 1) -> Duel:
    """The template with few steps and one picture a side, and its first pair."""
    make_workflows.build(front, find_my_taste_no_downloads())
    duel = Duel(front)
    duel.write("votes", "")  # the front end gives a new node the widgets' values of an earlier one with its number
    duel.write("steps", steps, "BlendedKSampler")
    duel.write("batch_size", 1, "LoadMiniature")
    duel.wait("stale")
    duel.part("run").click()
    duel.wait("choose")
    return duel


def learned(count: int) -> dict[str, Any]:
    """What four votes teach about five adapters: the first is better than every other."""
    search = Search(count)
    alone = [Option(tuple(float(i == j) for j in range(count))) for i in range(count)]
    votes = [Vote(alone[0], other, FIRST) for other in alone[1:]]
    names = [name.removesuffix(".safetensors") for name in FILES[:count]]
    said = {"votes": "", "count": len(votes), "options": ["", ""], "labels": ["", ""], "narrow": "", "sides": [[], []]}
    pair = [[*alone[0].weights, 1.0], [*alone[1].weights, 1.0]]
    return said | {"names": names, "pair": pair} | landscape(search, votes, search.posterior(votes))
