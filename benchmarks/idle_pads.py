"""What idle preference pads cost the page: the main thread's time with and without the extension's scripts.

    python -P benchmarks/idle_pads.py [--pads N] [--seconds S] [--rounds N]

A graph of N pairs of Load Reward LoRAs and Preference Weights is opened in two pages of headless Chromium: with the
extension's scripts, and without them. Nothing is touched. The pages are measured in turn, and the median of the rounds counts.
The time is ``TaskDuration`` of the DevTools protocol's ``Performance.getMetrics`` in thread time, so that other programs on the
machine do not count. A frame's budget is 1/60 s of every 1/60 s: the share of the thread's time is the share of the budget.
``COMFYUI_FRONT_END`` chooses the front end, as for the browser tests.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools")]

import comfy_browser  # noqa: E402
import comfy_hosts  # noqa: E402
import comfy_server  # noqa: E402
from make_server_models import LORAS  # noqa: E402

SCRIPTS = "**/extensions/diffusion-blend/**"
MAKE = """([pads, files]) => {
    app.graph.clear()
    for (let i = 0; i < pads; i++) {
        const loader = LiteGraph.createNode('LoadRewardLoRAs'), node = LiteGraph.createNode('PreferenceWeights')
        app.graph.add(loader)
        app.graph.add(node)
        files.forEach((file, j) => { loader.widgets.find((w) => w.name === `lora_${j + 1}`).value = file })
        const [across, down] = [i % 5, Math.floor(i / 5)]
        loader.pos = [across * 750, down * 700]
        node.pos = [across * 750 + 370, down * 700]
        loader.connect(0, node, node.findInputSlot('reward_loras'))
    }
}"""
PADS = "(pads) => document.querySelectorAll('.diffusion-blend-pad').length === pads"


def thread_time(session: Any) -> float:
    """Return the main thread's time in tasks, seconds."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def open_pads(front: comfy_browser.FrontEnd, pads: int, with_scripts: bool) -> Any:
    """Make the graph and wait until the page is idle; returns the page's session of the DevTools protocol.

    Raises:
        RuntimeError: the page has pads though it is the page without scripts.
    """
    front.page.evaluate(MAKE, [pads, list(LORAS)])
    front.fit()
    front.page.wait_for_function(PADS, arg=pads if with_scripts else 0)
    front.page.mouse.move(5, 400)
    front.pause(8000)
    session = front.page.context.new_cdp_session(front.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    return session


def measure(
    browser: Any, server: comfy_server.ComfyServer, renderer: str, options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Return the shares of the thread's time with and without the scripts, one for each round."""
    shares: tuple[list[float], list[float]] = ([], [])
    with (
        comfy_browser.front_end(browser, server, renderer) as scripts,
        comfy_browser.front_end(browser, server, renderer, without=SCRIPTS) as bare,
    ):
        pages = [(scripts, open_pads(scripts, options.pads, True)), (bare, open_pads(bare, options.pads, False))]
        for _ in range(options.rounds):
            for (front, session), found in zip(pages, shares, strict=True):
                start = thread_time(session)
                front.page.wait_for_timeout(1000 * options.seconds)
                found.append((thread_time(session) - start) / options.seconds)
    return shares


def main() -> None:
    """Measure both renderers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pads", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    (host, *_) = comfy_hosts.find_hosts()
    print("| renderer | with the scripts | without | difference, of a frame's budget | smallest and largest round |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        comfy_server.prepare(base, comfy_server.make_models(host, Path(folder) / "models"))
        with comfy_server.running(host, base) as server, comfy_browser.chromium() as browser:
            for renderer in (comfy_browser.CLASSIC, comfy_browser.NODES_2):
                present, absent = measure(browser, server, renderer, options)
                each = [100 * (a - b) for a, b in zip(present, absent, strict=True)]
                a, b = 100 * statistics.median(present), 100 * statistics.median(absent)
                print(
                    f"| {renderer} | {a:.2f} % | {b:.2f} % | {statistics.median(each):.2f} % "
                    f"| {min(each):.2f} % to {max(each):.2f} % |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
