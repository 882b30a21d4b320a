"""The real front end of a running ComfyUI server in headless Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comfy_server import ComfyServer
from playwright.sync_api import Browser, Page, sync_playwright

HOW_TO_GET_ONE = (
    "No Chromium was found: install one (apt-get install chromium; playwright install chromium) or set CHROMIUM."
)
CLASSIC, NODES_2 = "classic", "nodes 2.0"

# Messages of the front end itself on a first start without network, with and without extensions.
HOSTS_OWN = (
    r"Failed to load resource.*404",
    r"graph accessed before initialization",
    r"violates the following Content Security Policy|violates the document's Content Security Policy",
)
SQUASHED_MS = 120  # the front end adds changes within 50 ms of each other to the same step of undo
TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"
# Wait for the first workflow: on a slow machine it opens later, and would replace the graph of a test.
READY = (
    "() => window.app?.graph && !document.querySelector('#vue-app .p-progress-spinner')"
    " && window.app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.activeState"
)


def find_chromium() -> str | None:
    """Find the browser: ``CHROMIUM``, one on the path, or playwright's own (an empty string)."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found:
        return found
    with sync_playwright() as playwright:
        return "" if Path(playwright.chromium.executable_path).exists() else None


@dataclass
class FrontEnd:
    """An open page of the front end.

    Args:
        page: playwright's page; ``window.app`` is there.
        server: the server behind it.
        errors: console errors and uncaught exceptions, without those of the host itself.
    """

    page: Page
    server: ComfyServer
    errors: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("console", lambda message: self._note(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self._note(f"uncaught: {error}"))

    def _note(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in HOSTS_OWN):
            self.errors.append(text)

    def open(self) -> None:
        """Load (or reload) the page and wait for the front end."""
        self.page.goto(self.server.url)
        self.page.wait_for_function(READY, timeout=120_000)
        self.page.wait_for_function("() => LiteGraph.registered_node_types['PreferenceWeights']", timeout=60_000)
        self.page.wait_for_timeout(500)

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow in UI form, as if its file were dropped on the canvas."""
        self.page.evaluate("async (workflow) => { await app.loadGraphData(workflow) }", workflow)
        self.settle()

    def open_file(self, workflow: dict[str, Any], name: str = "opened") -> None:
        """Open a workflow as a file in a tab of its own."""
        self.page.evaluate(
            "async ([workflow, name]) => { await app.loadGraphData(workflow, true, true, name) }", [workflow, name]
        )
        self.settle()
        self.fit()
        self.pause(500)

    def settle(self) -> None:
        """Wait until the front end has drawn twice."""
        self.page.evaluate(
            "() => new Promise((done) => { app.canvas.setDirty(true, true);"
            " requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))) })"
        )

    def workflow(self) -> dict[str, Any]:
        """Return the open graph in UI form, as in a file. Without the text in between, absent values would become null."""
        return json.loads(self.page.evaluate("() => JSON.stringify((app.rootGraph ?? app.graph).serialize())"))

    def prompt(self) -> dict[str, Any]:
        """Return the open graph in API form, as the Run button sends it."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def pause(self, milliseconds: int) -> None:
        """Wait on the page's own clock. On a slow machine, too, the page's shorter timers have then ended."""
        self.page.evaluate("(time) => new Promise((done) => setTimeout(done, time))", milliseconds)

    def remember(self) -> None:
        """Make the present graph the state to which undo returns."""
        self.page.evaluate(f"() => {TRACKER}.captureCanvasState()")
        self.pause(SQUASHED_MS)

    def press_and_restore(self, key: str) -> None:
        """Undo or redo, and wait, because the front end drops a second one while it is still restoring."""
        lengths = f"() => [{TRACKER}.undoQueue.length, {TRACKER}.redoQueue.length].join()"
        before = self.page.evaluate(lengths)
        self.page.keyboard.press(key)
        self.page.wait_for_function(f"(before) => ({lengths})() !== before && !{TRACKER}._restoringState", arg=before)
        self.page.wait_for_timeout(300)

    def differs_from_tracked(self) -> list[str]:
        """Return the nodes that differ from the state known to undo. Such a node makes the front end delete its redo steps."""
        return self.page.evaluate(
            f"""() => {{
                const known = new Map({TRACKER}.activeState.nodes.map((node) => [node.id, JSON.stringify(node)]))
                const now = app.graph.serialize().nodes
                return now.filter((node) => known.get(node.id) !== JSON.stringify(node)).map((node) => node.type)
            }}"""
        )

    def fit(self, margin: int = 40) -> dict[str, float]:
        """Show the whole graph; returns its rectangle on the page, for a screenshot."""
        box = self.page.evaluate(
            """(margin) => {
                const nodes = app.canvas.graph.nodes.map((node) => node.boundingRect)
                const left = Math.min(...nodes.map((r) => r[0])), top = Math.min(...nodes.map((r) => r[1]))
                const right = Math.max(...nodes.map((r) => r[0] + r[2])), bottom = Math.max(...nodes.map((r) => r[1] + r[3]))
                const view = app.canvas.canvas.getBoundingClientRect()
                const width = view.width - 160 - 2 * margin, height = view.height - 200 - 2 * margin
                const scale = Math.min(width / (right - left), height / (bottom - top), 1)
                app.canvas.ds.scale = scale
                app.canvas.ds.offset[0] = (90 + margin) / scale - left
                app.canvas.ds.offset[1] = (110 + margin) / scale - top
                app.canvas.setDirty(true, true)
                return {x: view.left + 90, y: view.top + 110,
                        width: (right - left) * scale + 2 * margin, height: (bottom - top) * scale + 2 * margin}
            }""",
            margin,
        )
        self.settle()
        self.page.wait_for_timeout(300)
        return box


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser."""
    executable = find_chromium()
    if executable is None:
        raise RuntimeError(HOW_TO_GET_ONE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable or None, args=["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def front_end(
    browser: Browser,
    server: ComfyServer,
    renderer: str = CLASSIC,
    width: int = 1600,
    height: int = 1000,
    without: str = "",
    **options: Any,
) -> Iterator[FrontEnd]:
    """Open a page of the front end in a renderer, with an empty graph. Requests for files that match ``without`` fail."""
    server.post("/settings", settings(renderer))
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    try:
        if without:
            context.route(without, lambda route: route.abort())
        opened = FrontEnd(context.new_page(), server)
        opened.page.set_default_timeout(40_000)
        opened.listen()
        opened.open()
        opened.page.evaluate("() => app.graph.clear()")
        opened.errors.clear()
        yield opened
    finally:
        context.close()


def settings(renderer: str) -> dict[str, Any]:
    """Settings that close the windows of a first start, and the renderer."""
    if renderer not in (CLASSIC, NODES_2):
        raise ValueError(f"renderer is {renderer!r}: choose {CLASSIC!r} or {NODES_2!r}.")
    return {
        "Comfy.TutorialCompleted": True,
        "Comfy.OnboardingCoachmarks.Seen": ["appMode"],
        "Comfy.VueNodes.Enabled": renderer == NODES_2,
        "Comfy.Minimap.Visible": False,
        "Comfy.RightSidePanel.IsOpen": False,
        "Comfy.Graph.CanvasInfo": False,
        "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # draw text of every size, for pictures
    }
