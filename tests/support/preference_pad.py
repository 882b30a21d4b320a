"""Mouse and keyboard actions on the preference pad of an open front end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_browser import SQUASHED_MS, FrontEnd
from make_server_models import LORAS

Point = tuple[float, float]
NUMBERS = ("weight_1", "weight_2", "weight_3", "weight_4", "kl_scale")
# The pad's own picture: corners of the line, triangle and square, and the KL scale's track (web/pad/layout.js).
CORNERS: dict[int, list[Point]] = {
    2: [(30, 92), (270, 92)],
    3: [(74, 160), (226, 160), (150, 28)],
    4: [(84, 28), (216, 28), (216, 160), (84, 160)],
}
SHORT = {"BlendedKSampler.steps": 2, "LoadMiniature.batch_size": 2}  # of the template's settings: two cores, many tests
SHORTEN = """(changes) => {
    for (const [name, value] of Object.entries(changes)) {
        const [type, widget] = name.split('.')
        app.graph.nodes.find((node) => node.type === type).widgets.find((w) => w.name === widget).value = value
    }
}"""
TRACK_Y, TRACK_FROM, TRACK_TO = 243.0, 30.0, 270.0
NAMES = [file.removesuffix(".safetensors") for file in LORAS]
MIDDLE, QUARTER, TENTH = (150, 92), (210, 92), (54, 92)
"""On the line: half, a quarter and nine tenths of the first adapter."""


def mean(corners: list[Point], weights: list[float]) -> Point:
    total = sum(weights)
    x = sum(w * c[0] for w, c in zip(weights, corners, strict=True)) / total
    y = sum(w * c[1] for w, c in zip(weights, corners, strict=True)) / total
    return x, y


def near(point: list[float] | None, wanted: Point) -> bool:
    return point is not None and abs(point[0] - wanted[0]) < 0.01 and abs(point[1] - wanted[1]) < 0.01


def weights_of(numbers: dict[str, float]) -> list[float]:
    return [numbers[f"weight_{number}"] for number in (1, 2, 3, 4)]


MAKE = """({files, values, connect}) => {
    app.graph.clear()
    const loader = LiteGraph.createNode('LoadRewardLoRAs'), node = LiteGraph.createNode('PreferenceWeights')
    app.graph.add(loader); app.graph.add(node)
    loader.pos = [100, 100]; node.pos = [560, 100]
    // Everything is set: the front end gives a new node the widget values of an earlier one with the same id.
    for (let i = 0; i < 4; i++) loader.widgets[2 * i].value = files[i] ?? 'None'
    for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value
    if (connect) loader.connect(0, node, node.findInputSlot('reward_loras'))
    return [loader.id, node.id]
}"""
LOOK = """(id) => {
    const pad = app.canvas.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad').element
    const part = (name) => pad.querySelector(`[data-part=${name}]`)
    const place = (handle) => {
        const found = /translate\\(([-\\d.e]+) ([-\\d.e]+)\\)/.exec(handle.getAttribute('transform') ?? '')
        return handle.style.display === 'none' || !found ? null : [Number(found[1]), Number(found[2])]
    }
    return {
        labels: [...pad.querySelectorAll('[data-part=label]')].map((label) => label.querySelector('title').textContent),
        weights: place(part('weights')), kl: place(part('kl')),
        message: [...part('message').children].map((line) => line.textContent).join(' '),
        isProblem: part('message').dataset.problem === 'true',
        shown: pad.isConnected && pad.getBoundingClientRect().height > 50,
    }
}"""
ON_SCREEN = """([id, points]) => {
    const pad = app.canvas.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad').element
    const matrix = pad.querySelector('svg').getScreenCTM()
    return points.map(([x, y]) => { const p = new DOMPoint(x, y).matrixTransform(matrix); return [p.x, p.y] })
}"""


@dataclass
class Pad:
    """The pad of one Preference Weights node.

    Args:
        front: the open front end.
        node: the node's id.
        loader: the id of its Load Reward LoRAs.
    """

    front: FrontEnd
    node: Any
    loader: Any = None

    def look(self) -> dict[str, Any]:
        """Return the pad's labels, handles (in the pad's own units, None when hidden) and message."""
        return self.front.page.evaluate(LOOK, self.node)

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript condition on ``look`` holds, because the pad follows links and files a moment later."""
        self.front.page.wait_for_function(f"(id) => {{ const look = ({LOOK})(id); return {condition} }}", arg=self.node)

    def numbers(self) -> dict[str, float]:
        """Return the values of the number widgets."""
        return self.front.page.evaluate(
            "([id, names]) => Object.fromEntries(app.canvas.graph.getNodeById(id).widgets"
            ".filter((w) => names.includes(w.name)).map((w) => [w.name, w.value]))",
            [self.node, list(NUMBERS)],
        )

    def set_number(self, name: str, value: float) -> None:
        """Change a number as a loaded file or another extension does, without a notification of the widget."""
        self.front.page.evaluate(
            "([id, name, value]) => { app.canvas.graph.getNodeById(id).widgets.find((w) => w.name === name).value = value }",
            [self.node, name, value],
        )

    def sent(self) -> dict[str, Any]:
        """Return the node's inputs in the API prompt."""
        return self.front.prompt()[str(self.node)]["inputs"]

    def on_screen(self, *points: Point) -> list[Point]:
        return [tuple(point) for point in self.front.page.evaluate(ON_SCREEN, [self.node, points])]

    def drag(self, start: Point, end: Point) -> None:
        """Press at start, move to end and release, in the pad's own units."""
        (x0, y0), (x1, y1) = self.on_screen(start, end)
        mouse = self.front.page.mouse
        mouse.move(x0, y0)
        mouse.down()
        mouse.move((x0 + x1) / 2, (y0 + y1) / 2, steps=3)
        mouse.move(x1, y1, steps=3)
        mouse.up()
        self.front.settle()
        self.front.pause(SQUASHED_MS)

    def focus(self, part: str) -> None:
        self.front.page.evaluate(
            "([id, part]) => app.canvas.graph.getNodeById(id).widgets.find((w) => w.name === 'preference_pad')"
            ".element.querySelector(`[data-part=${part}]`).focus()",
            [self.node, part],
        )


def make(front: FrontEnd, files: tuple[str, ...] = (), connect: bool = True, **values: float) -> Pad:
    """Put a Load Reward LoRAs with these files on screen, and a Preference Weights with these numbers after it."""
    numbers = {"weight_1": 0.5, "weight_2": 0.5, "weight_3": 0.0, "weight_4": 0.0, "kl_scale": 1.0} | values
    arguments = {"files": list(files), "values": numbers, "connect": connect}
    loader, node = front.page.evaluate(MAKE, arguments)
    front.settle()
    front.fit()
    pad = Pad(front, node, loader)
    corners = len(files) if connect and files else 2
    pad.wait(f"look.shown && look.labels.length >= {corners}")
    front.page.wait_for_timeout(300)  # Nodes 2.0 sizes the node once more
    return pad


def scale_x(kl_scale: float, low: float = -1, high: float = 3) -> float:
    """Return the place of a KL scale on the track."""
    return TRACK_FROM + (kl_scale - low) / (high - low) * (TRACK_TO - TRACK_FROM)


BUILD = """([nodes, links]) => {
    app.graph.clear()
    const made = {}
    Object.entries(nodes).forEach(([name, [type, values]], i) => {
        const node = made[name] = LiteGraph.createNode(type)
        app.graph.add(node)
        node.title = name
        node.pos = [60 + 420 * (i % 3), 60 + 560 * Math.floor(i / 3)]
        // All numbers and files are set: the front end gives a new node the widget values of an earlier one with the same id.
        for (const widget of node.widgets ?? []) {
            if (/^lora_\\d/.test(widget.name)) widget.value = 'None'
            if (/^on_\\d/.test(widget.name)) widget.value = true
            if (/^weight_\\d/.test(widget.name)) widget.value = 0
            if (/^(eta|strength)_\\d|^kl_scale$/.test(widget.name)) widget.value = 1
        }
        for (const [key, value] of Object.entries(values)) node.widgets.find((w) => w.name === key).value = value
    })
    for (const [from, to, input] of links) {
        const inputs = made[to].inputs
        made[from].connect(0, made[to], inputs.findIndex((each) => each.name === input || each.widget?.name === input))
    }
    return Object.fromEntries(Object.entries(made).map(([name, node]) => [name, node.id]))
}"""
READ_WIDGETS = (
    """([id, names]) => names.map((name) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value)"""
)

Nodes = dict[str, tuple[str, dict[str, Any]]]


def loader(*files: str) -> tuple[str, dict[str, Any]]:
    return "LoadRewardLoRAs", {f"lora_{i}": file for i, file in enumerate(files, start=1)}


def weights(*values: float) -> tuple[str, dict[str, Any]]:
    return "PreferenceWeights", {f"weight_{i}": value for i, value in enumerate(values, start=1)}


def node(kind: str, **values: Any) -> tuple[str, dict[str, Any]]:
    return kind, values


def build(front: FrontEnd, nodes: Nodes, *links: str) -> dict[str, Any]:
    """Put nodes on screen, each link as ``"name of the first node > name of the second.input"``; returns the ids by name."""
    pairs = [(link.split(" > ")[0], *link.split(" > ")[1].split(".")) for link in links]
    ids = front.page.evaluate(BUILD, [nodes, pairs])
    front.settle()
    front.fit()
    front.pause(500)
    return ids


def set_mode(front: FrontEnd, number: Any, mode: int) -> None:
    """0: runs, 2: muted, 4: bypassed."""
    front.page.evaluate("([id, mode]) => { app.graph.getNodeById(id).mode = mode }", [number, mode])


def read(front: FrontEnd, number: Any, *names: str) -> list[Any]:
    """The values of a node's widgets."""
    return front.page.evaluate(READ_WIDGETS, [number, list(names)])


def has(front: FrontEnd, number: Any, names: list[str], message: str = "") -> None:
    """Wait until a pad has these corners and says this."""
    Pad(front, number).wait(f"look.labels.join() === '{','.join(names)}' && look.message.startsWith({message!r})")
