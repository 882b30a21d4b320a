"""Run the templates on the miniature, for their thumbnails and the help pages' pictures of results.

``python tools/make_results.py`` runs the graphs that ``make_workflows.py`` recorded on a real server without a browser. It
writes ``workflows/TITLE.jpg`` and the ``result_*``, sheet and Pareto pictures of ``web/docs/images``. With names of templates it
makes only their pictures. Run it again when the miniature's adapters or a template change.
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests" / "support"))

import comfy_hosts  # noqa: E402
import comfy_server  # noqa: E402
import workflow_results  # noqa: E402
from PIL import Image  # noqa: E402
from workflow_sources import TITLES  # noqa: E402

# The picture of a template ("" is its main one) that a help page shows.
HELP = {
    ("try_it_no_downloads", ""): "result_miniature",
    ("blend_two_adapters", ""): "result_blend",
    ("kl_scale_row", ""): "kl_scale_row",
    ("preference_schedule", ""): "result_schedule",
    ("regional_preference", ""): "result_regional",
    ("stochastic_blend_model", ""): "result_stochastic",
    ("keep_this_blend_as_one_lora", ""): "result_baked",
    ("sweep_with_pareto", ""): "preference_sheet",
    ("sweep_with_pareto", "pareto"): "preference_pareto",
}


def thumbnail(picture: Image.Image, path: Path) -> None:
    """Write a square picture. The front end's cards are square, so that nothing is cut and no frame shows."""
    if picture.width != picture.height:
        raise ValueError(f"{path.name}: the cover has {picture.width} x {picture.height} pixels and must be square.")
    picture.save(path, quality=85, optimize=True)


def write(server: comfy_server.ComfyServer, name: str) -> None:
    prompt = json.loads((CHECKOUT / "tests" / "server" / "templates" / f"{name}.json").read_text())
    drawn = workflow_results.DRAW[name](partial(workflow_results.pictures, server), prompt)
    thumbnail(drawn["cover"], CHECKOUT / "workflows" / f"{TITLES[name]}.jpg")
    for part, picture in drawn.items():
        page = HELP.get((name, part))
        if page is not None:
            picture.save(CHECKOUT / "web" / "docs" / "images" / f"{page}.png", optimize=True)
    print(name, flush=True)


def main() -> None:
    names = sys.argv[1:] or list(workflow_results.DRAW)
    unknown = sorted(set(names) - set(workflow_results.DRAW))
    if unknown:
        raise SystemExit(f"No template is called {', '.join(unknown)}; there are {', '.join(workflow_results.DRAW)}.")
    with tempfile.TemporaryDirectory() as folder:
        cache, base = Path(folder) / "models", Path(folder) / "base"
        cache.mkdir()
        host = comfy_hosts.find_hosts()[0]
        comfy_server.prepare(base, comfy_server.make_models(host, cache))
        with comfy_server.running(host, base, seconds=600) as server:
            for name in names:
                write(server, name)


if __name__ == "__main__":
    main()
