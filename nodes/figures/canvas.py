"""Figures by matplotlib without its global state, as pictures. matplotlib is imported only when a figure is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100


def empty_figure(width: int, height: int) -> Figure:
    """Make an empty figure.

    Args:
        width: pixels.
        height: pixels.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError(
            "The figure needs matplotlib, which is not installed: run pip install -r requirements.txt in this extension's "
            "folder, or let the Manager do it."
        ) from error
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI)


def rendered(figure: Figure) -> Image.Image:
    """Draw a figure as an RGB picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
