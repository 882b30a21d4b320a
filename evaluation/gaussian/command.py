"""``diffusion-blend evaluate``: studies whose answer is known. Prints every table, writes figures and JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ...artifacts.command_line import EARLIER, check_options, present_spelling, run_command
from ...artifacts.files import check_folder, write_atomically
from ...artifacts.settings_parser import SettingsParser
from ...artifacts.tables import json_bytes, markdown_table


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; returns the exit status."""
    words = present_spelling(sys.argv[1:] if argv is None else argv, EARLIER)
    chosen = _parser().parse_args(words)
    options = chosen[chosen.subcommand]

    def work() -> None:
        check_options(options, {"points": 2, "seed": 0, "people": 2})
        if chosen.subcommand in ("corrected", "cross"):
            check_options(options, {"seeds": 2})
        for count in getattr(options, "adapters", []):
            check_options(Namespace(adapters=count), {"adapters": 2})
        if not getattr(options, "alpha", 1.0) > 0:
            raise ValueError(f"--alpha is {options.alpha}: a KL weight must be above 0")
        for seed in options.seeds if chosen.subcommand in ("learned", "stacked") else []:
            check_options(Namespace(seeds=seed), {"seeds": 0})
        check_folder(options.output)
        import torch as torch  # a missing library is reported before a folder is made

        options.output.mkdir(parents=True, exist_ok=True)
        _STUDIES[chosen.subcommand](options)

    return run_command(f"evaluate {chosen.subcommand}", work)


def _parser() -> SettingsParser:
    parser = SettingsParser(prog="diffusion-blend evaluate", description=__doc__)
    commands = parser.add_subcommands(required=True)
    exact = SettingsParser(description="exact scores of a Gaussian mixture: blend against the known truth")
    exact.add_argument("--seed", type=int, default=0)
    exact.add_argument("--points", type=int, default=10_000, help="points a setting")
    learned = SettingsParser(description="trained networks and adapters: every method against the known truth")
    learned.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    learned.add_argument("--points", type=int, default=4000, help="points a setting and seed")
    learned.add_argument("--only_pairs", type=bool, default=False, help="leave out sets of more than two rewards")
    stacked = SettingsParser(description="adapters trained to be stacked against the adapter trained for each mixture")
    stacked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    stacked.add_argument("--points", type=int, default=4000, help="points a weight and seed")
    stacked.add_argument("--alpha", type=float, default=0.25, help="KL weight, reward units per nat")
    taste = SettingsParser(description="simulated people: how many duels find a hidden preference")
    taste.add_argument("--people", type=int, default=200, help="hidden utilities of each kind (200)")
    taste.add_argument("--adapters", type=int, nargs="+", default=[2, 3, 4, 8], help="numbers of adapters")
    ways = ["duels", "duels, quadratic", "random pairs", "random choice", "grid walk", "sliders"]
    taste.add_argument("--ways", nargs="+", choices=ways, default=ways, help="ways of asking (all)")
    taste.add_argument("--miniature", type=bool, default=True, help="also hidden mixes of the miniature's rewards")
    corrected = SettingsParser(
        description="path weights: the corrected blend and the sampler's noise; resumed where it stopped"
    )
    corrected.add_argument("--seeds", type=int, default=20, help="number of seeds; learned networks use the first 5")
    corrected.add_argument("--points", type=int, default=1000, help="points a setting and seed")
    parts = ("particles", "noise", "dimension", "learned")
    corrected.add_argument("--parts", type=str, nargs="+", choices=parts, default=list(parts), help="tables to make")
    cross = SettingsParser(
        description="one call for every preference: cross and distilled adapters; resumed where it stopped"
    )
    cross.add_argument("--seeds", type=int, default=5, help="number of seeds")
    cross.add_argument("--points", type=int, default=4000, help="points a setting and seed")
    for study in (exact, learned, stacked, taste, corrected, cross):
        study.add_argument("--output", type=Path, required=True, help="folder for tables, JSON and figure")
    commands.add_subcommand("exact", exact, help=exact.description, aliases=["oracle"])
    commands.add_subcommand("learned", learned, help=learned.description)
    commands.add_subcommand("stacked", stacked, help=stacked.description)
    commands.add_subcommand("taste", taste, help=taste.description)
    commands.add_subcommand("corrected", corrected, help=corrected.description)
    commands.add_subcommand("cross", cross, help=cross.description)
    return parser


def _exact(options: Namespace) -> None:
    from . import exact_study
    from .figures import exact_figure

    seed, points = options.seed, options.points
    world = exact_study.World(exact_study.ring(), exact_study.pick(("right", "centre")), 1.0)
    drift = exact_study.drift_errors(world, [0.5, 0.5], seed)
    exact = exact_study.jensen_gap(seed, points)
    scale = exact_study.kl_scale(seed, points)
    weak = exact_study.weak_error(seed, points)
    _publish(
        options,
        "exact",
        f"seed {seed}, {points} points a setting, {exact_study.STEPS} steps (weak error: as listed)",
        {
            "Blend against the exact solution": exact,
            "Errors over the noise level (right/centre, alpha 1, w .5)": drift,
            "Stochastic against blend (right/centre, alpha 1, w .5)": weak,
            "KL scale against the truly tuned distribution": scale,
        },
    )
    exact_figure(exact, weak, scale, drift, options.output / "exact.png")


def _learned(options: Namespace) -> None:
    from .claims import equality_table, ratio_table
    from .figures import learned_figure
    from .learned_study import METHODS, STEPS, Effort, measure, summaries

    effort = Effort(points=options.points, seeds=tuple(options.seeds), only_pairs=options.only_pairs)
    measured = measure(effort, options.output)
    rows = summaries(measured)
    shown = ["rewards", "alpha"]
    paired = [*shown, *(key for key in rows[0] if key.endswith("- blend")), "linearity gap", "MSDDA difference"]
    tables = {
        "Sliced Wasserstein distance to the truth": [{key: row[key] for key in (*shown, *METHODS)} for row in rows],
        "Paired differences and diagnostics": [{key: row[key] for key in paired} for row in rows],
        "Ratios of distances": ratio_table(measured),
        "Tests of equality": equality_table(measured),
    }
    _publish(options, "learned", f"seeds {list(effort.seeds)}, {effort.points} points, {STEPS} steps", tables)
    learned_figure(rows, METHODS, options.output / "learned.png")


def _stacked(options: Namespace) -> None:
    from .figures import stacked_figure
    from .stacked_study import METHODS, STEPS, Effort, study

    effort = Effort(points=options.points, seeds=tuple(options.seeds), alpha=options.alpha)
    distances, ratios, noise = study(effort, options.output)
    setting = f"seeds {list(effort.seeds)}, alpha {effort.alpha:g}, {effort.points} points, {STEPS} steps"
    tables = {
        "Sliced Wasserstein distance to the truth": distances,
        "Ratio to the adapter trained for w": ratios,
        "Noise of one batch's gradient (DiffusionNFT): variance over squared mean": noise,
    }
    _publish(options, "stacked", setting, tables)
    stacked_figure(distances, METHODS, options.output / "stacked.png")


def _taste(options: Namespace) -> None:
    from ..taste.command import run

    run(options)


def _corrected(options: Namespace) -> None:
    from .corrected_study import STEPS, study
    from .figures import corrected_figure

    tables = study(options.output, options.seeds, options.points, tuple(options.parts))
    _publish(options, "corrected", f"seeds 0 to {options.seeds - 1}, {options.points} points, {STEPS} steps", tables)
    corrected_figure({title.split(" (")[0]: rows for title, rows in tables.items()}, options.output / "corrected.png")


def _cross(options: Namespace) -> None:
    from .cross_study import study
    from .learned_study import STEPS

    tables = study(options.output, options.seeds, options.points)
    _publish(options, "cross", f"seeds 0 to {options.seeds - 1}, {options.points} points, {STEPS} steps", tables)


def _publish(options: Namespace, name: str, setting: str, tables: dict[str, list[dict[str, Any]]]) -> None:
    text = f"{name}: {setting}\n" + "".join(f"\n{title}\n\n{markdown_table(rows)}" for title, rows in tables.items())
    sys.stdout.write(text)
    write_atomically(options.output / f"{name}.md", text.encode())
    write_atomically(options.output / f"{name}.json", json_bytes({"setting": setting, "tables": tables}))


_STUDIES = {
    "exact": _exact,
    "oracle": _exact,
    "learned": _learned,
    "taste": _taste,
    "stacked": _stacked,
    "corrected": _corrected,
    "cross": _cross,
}
"""Study -> its function; ``oracle`` is the earlier name of ``exact``."""


if __name__ == "__main__":
    sys.exit(main())
