"""The study ``taste`` of ``diffusion-blend evaluate``: simulated people, and hidden mixes of the miniature's rewards."""

from __future__ import annotations

import json
import sys

import numpy as np
from jsonargparse import Namespace

from ...artifacts.files import write_atomically
from ...artifacts.tables import markdown_table
from .miniature import find, measure
from .study import median, shown, study, table

RUNS = 50
"""Hidden mixes of the miniature's rewards."""


def run(options: Namespace) -> None:
    """Run what is missing, and write ``taste.md``, ``taste.json`` and ``taste.png``.

    Args:
        options: ``output``, ``people``, ``adapters``, ``ways`` and ``miniature``.
    """
    from .figures import taste_figure

    (options.output / "people").mkdir(exist_ok=True)
    rows = study(options.output / "people", options.people, options.adapters, options.ways)
    text = (
        f"taste: {options.people} people a row, median regret after so many duels (0 the best, 1 an average option)\n\n"
    )
    text += markdown_table(table(rows))
    if options.miniature:
        (options.output / "miniature").mkdir(exist_ok=True)
        lost = find(measure(options.output / "miniature"), RUNS)
        middle = shown(median(np.array(lost)))
        text += f"\nThe miniature, {RUNS} hidden mixes of its rewards, 10 duels: {middle} standard deviations\n"
    sys.stdout.write(text)
    write_atomically(options.output / "taste.md", text.encode())
    write_atomically(options.output / "taste.json", json.dumps(rows, indent=1).encode())
    taste_figure(rows, options.output / "taste.png")
