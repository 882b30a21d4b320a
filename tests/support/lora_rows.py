"""Mouse actions on the rows of Load Reward LoRAs in an open front end."""

from __future__ import annotations

from typing import Any

from comfy_browser import SQUASHED_MS, FrontEnd

ELEMENT = "app.graph.getNodeById(id).widgets.find((w) => w.name === 'lora_rows').element"
"""The element of the rows, in a script that knows the loader's id."""
PLACE = f"""([id, row, part]) => {{
    const box = {ELEMENT}.querySelectorAll(`[data-part=${{part}}]`)[row].getBoundingClientRect()
    return [box.x + box.width / 2, box.y + box.height / 2]
}}"""


def place(front: FrontEnd, loader: Any, row: int, part: str) -> list[float]:
    """The middle of a part of a row, in pixels of the page."""
    return front.page.evaluate(PLACE, [loader, row, part])


def click(front: FrontEnd, loader: Any, row: int, part: str) -> None:
    front.page.mouse.click(*place(front, loader, row, part))
    front.settle()
    front.pause(SQUASHED_MS)


def move(front: FrontEnd, loader: Any, start: int, end: int) -> None:
    """Drag a row by its grip to the place of another one."""
    (x, y), (_, to) = (place(front, loader, row, "grip") for row in (start, end))
    mouse = front.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x, (y + to) / 2, steps=3)
    mouse.move(x, to, steps=3)
    mouse.up()
    front.settle()
    front.pause(SQUASHED_MS)
