"""The contact sheet of a sweep: each image in its place, with its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .drawing import INK, LINE, MUTED, PAPER, colour, fitted, legend, spaced, write
from .sheet_layout import Layout

MOST_PIXELS = 40_000_000
"""Of a sheet. The host holds an image as float32: these are 480 MB."""

SMALLEST = 32
"""The smallest size of an image on a sheet, pixels."""


@dataclass(frozen=True)
class Cell:
    """What is shown of one point.

    Args:
        image: its picture.
        label: its name.
        shares: the adapters' weights, sum 1; empty where there is nothing to show.
        note: a second, smaller line; empty for none.
    """

    image: Image.Image
    label: str
    shares: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Measures:
    """Sizes in pixels.

    Args:
        width: of an image's box.
        height: of it.
        text: of the letters.
        bar: of the bar of shares.
        below: of everything below an image.
        gap: between cells.
    """

    width: int
    height: int
    text: int
    bar: int
    below: int
    gap: int

    @property
    def step(self) -> tuple[int, int]:
        """From one cell to the next."""
        return self.width + self.gap, self.height + self.below + self.gap


def measures(cells: Sequence[Cell], size: int) -> Measures:
    """Boxes of the images' own proportions where they agree, else squares; letters that can be read.

    Args:
        cells: all.
        size: the longer side of a box, pixels.
    """
    wide, high = cells[0].image.size
    if any(cell.image.width * high != cell.image.height * wide for cell in cells):
        wide = high = 1
    longest = max(wide, high)
    text = min(28, max(12, round(0.075 * size)))
    bar = max(4, round(0.025 * size)) if any(cell.shares for cell in cells) else 0
    lines = 1 + any(cell.note for cell in cells)
    below = round(bar + 0.4 * text + lines * 1.3 * text)
    return Measures(
        max(1, size * wide // longest), max(1, size * high // longest), text, bar, below, max(8, size // 14)
    )


def size_that_fits(cells: Sequence[Cell], layout: Layout, size: int) -> int:
    """Return the largest size of an image, at most the given one, with which a sheet has no more than `MOST_PIXELS`.

    Args:
        cells: one a point.
        layout: their places.
        size: the longer side of an image, pixels.
    """
    while size > SMALLEST:
        step = measures(cells, size).step
        if (layout.columns + 1) * step[0] * (layout.rows + 1) * step[1] <= MOST_PIXELS:
            break
        size = max(SMALLEST, size * 9 // 10)
    return size


def contact_sheet(
    cells: Sequence[Cell], layout: Layout, names: Sequence[str], size: int, footer: str = ""
) -> Image.Image:
    """Draw the sheet.

    Args:
        cells: one a point.
        layout: their places.
        names: the adapters'; corners of a triangle, else a legend of the bars' colours.
        size: the longer side of an image, pixels.
        footer: a line at the bottom; empty for none.
    """
    sizes = measures(cells, size)
    corners = layout.kind == "triangle"
    line, margin = round(1.5 * sizes.text), 2 * sizes.gap
    above = line if corners else 0
    has_legend = bool(sizes.bar and not corners)
    width = round((layout.columns - 1) * sizes.step[0] + sizes.width) + 2 * margin
    body = (layout.rows - 1) * sizes.step[1] + sizes.height + sizes.below
    height = body + 2 * margin + above + line * (corners + has_legend + bool(footer))
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    corner_places = []
    for cell, (column, row) in zip(cells, layout.places, strict=True):
        place = (round(margin + column * sizes.step[0]), round(margin + above + row * sizes.step[1]))
        _draw_cell(sheet, draw, cell, place, sizes)
        corner_places.append(place)
    y = margin + above + body + round(0.3 * sizes.text)
    if corners:
        _name_corners(draw, cells, corner_places, names, sizes)
        y += line
    if has_legend:
        legend(draw, (width / 2, y), names, sizes.text, width - 2 * margin)
        y += line
    if footer:
        write(draw, (width / 2, y), footer, 0.85 * sizes.text, width=width - 2 * margin, fill=MUTED)
    return sheet


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, place: tuple[int, int], sizes: Measures
) -> None:
    left, top = place
    image = fitted(cell.image, sizes.width, sizes.height)
    inside = left + (sizes.width - image.width) // 2, top + (sizes.height - image.height) // 2
    if image.size != (sizes.width, sizes.height):
        draw.rectangle((left, top, left + sizes.width - 1, top + sizes.height - 1), outline=LINE)
    sheet.paste(image, inside)
    x, y = float(left), top + sizes.height + 2
    for adapter, share in enumerate(cell.shares):
        end = x + share * sizes.width
        if round(end) > round(x):
            draw.rectangle((round(x), y, round(end) - 1, y + sizes.bar - 1), fill=colour(adapter))
        x = end
    middle, y = left + sizes.width / 2, y + sizes.bar + 0.3 * sizes.text
    write(draw, (middle, y), spaced(cell.label), sizes.text, width=sizes.width + sizes.gap / 2, fill=INK)
    if cell.note:
        y += 1.25 * sizes.text
        write(draw, (middle, y), spaced(cell.note), 0.85 * sizes.text, width=sizes.width + sizes.gap / 2, fill=MUTED)


def _name_corners(
    draw: ImageDraw.ImageDraw,
    cells: Sequence[Cell],
    places: Sequence[tuple[int, int]],
    names: Sequence[str],
    sizes: Measures,
) -> None:
    """Each adapter's name by the image that is all its own: above the top one, below the lower two."""
    for adapter, name in enumerate(names):
        left, top = places[max(range(len(cells)), key=lambda i: cells[i].shares[adapter])]
        y = top - 1.4 * sizes.text if adapter == 0 else top + sizes.height + sizes.below + 0.3 * sizes.text
        width = (2 * sizes.width if adapter == 0 else sizes.width) + sizes.gap
        legend(draw, (left + sizes.width / 2, y), [name], 1.1 * sizes.text, width, first=adapter)
