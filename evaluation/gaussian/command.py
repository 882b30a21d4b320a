"""``diffusion-blend evaluate``: the analytic study and the learned study; prints every table, writes figures and JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...artifacts.tables import markdown_table


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``oracle`` or ``learned``; the exit status is returned."""
    options = _parser().parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    options.run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="diffusion-blend evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="STUDY")
    oracle = commands.add_parser("oracle", help="exact scores of a Gaussian mixture: blend against the known truth")
    oracle.add_argument("--seed", type=int, default=0)
    oracle.add_argument("--points", type=int, default=10_000, help="points a setting (10000)")
    oracle.set_defaults(run=_oracle)
    learned = commands.add_parser("learned", help="trained networks and adapters: every method against the known truth")
    learned.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    learned.add_argument("--points", type=int, default=4000, help="points a setting and seed (4000)")
    learned.set_defaults(run=_learned)
    for command in (oracle, learned):
        command.add_argument("--out", type=Path, required=True, help="folder for the tables, the JSON and the figure")
    return parser


def _oracle(options: argparse.Namespace) -> None:
    from . import oracle
    from .figures import oracle_figure

    seed, points = options.seed, options.points
    world = oracle.World(oracle.ring(), oracle.pick(("right", "centre")), 1.0)
    drift = oracle.drift_errors(world, [0.5, 0.5], seed)
    gap = oracle.jensen_gap(seed, points)
    scale = oracle.kl_scale(seed, points)
    weak = oracle.weak_error(seed, points)
    _publish(
        options,
        "oracle",
        f"seed {seed}, {points} points a setting, {oracle.STEPS} steps (weak error: as listed)",
        {
            "Blend against the oracle": gap,
            "Errors over the noise level (right/centre, alpha 1, w .5)": drift,
            "Stochastic against blend (right/centre, alpha 1, w .5)": weak,
            "KL scale against the truly tuned distribution": scale,
        },
    )
    oracle_figure(gap, weak, scale, drift, options.out / "oracle.png")


def _learned(options: argparse.Namespace) -> None:
    from .figures import learned_figure
    from .learned import METHODS, STEPS, Effort, study

    effort = Effort(points=options.points, seeds=tuple(options.seeds))
    rows = study(effort)
    shown = ["rewards", "alpha"]
    paired = [*shown, *(key for key in rows[0] if key.endswith("- blend")), "linearity gap", "MSDDA difference"]
    tables = {
        "Sliced Wasserstein distance to the truth": [{key: row[key] for key in (*shown, *METHODS)} for row in rows],
        "Paired differences and diagnostics": [{key: row[key] for key in paired} for row in rows],
    }
    _publish(options, "learned", f"seeds {list(effort.seeds)}, {effort.points} points, {STEPS} steps", tables)
    learned_figure(rows, METHODS, options.out / "learned.png")


def _publish(options: argparse.Namespace, name: str, setting: str, tables: dict[str, list[dict[str, Any]]]) -> None:
    text = f"{name}: {setting}\n" + "".join(f"\n{title}\n\n{markdown_table(rows)}" for title, rows in tables.items())
    sys.stdout.write(text)
    (options.out / f"{name}.md").write_text(text, encoding="utf-8")
    (options.out / f"{name}.json").write_text(
        json.dumps({"setting": setting, "tables": tables}, indent=1), encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main())
