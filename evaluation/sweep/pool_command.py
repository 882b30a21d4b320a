"""``diffusion-blend pool SWEEP ...``: sweeps of several trainings as one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ...artifacts.command_line import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    from ...artifacts.settings_parser import SettingsParser

    description = "Means over sweeps of several trainings, with intervals over the trainings."
    parser = SettingsParser(prog="diffusion-blend pool", description=description)
    parser.add_argument(
        "sweeps",
        nargs="+",
        type=Path,
        help="folders of finished sweeps of the same settings, one for each training, or their summary.json",
    )
    parser.add_argument(
        "--kl_weight",
        type=float | None,
        default=None,
        help="of the trainings: print their objective r(w) - kl_weight KL instead; the sweeps must have measured the KL",
    )
    parser.add_argument("--reference", type=str, default="blend", help="the method that differences are from")
    given = parser.parse_args(list(sys.argv[1:] if arguments is None else arguments))
    return run_command("pool", lambda: _pool(given.sweeps, given.kl_weight, given.reference))


def _pool(files: Sequence[Path], kl_weight: float | None, reference: str) -> None:
    from ...artifacts.tables import markdown_table
    from .comparisons import MARGIN
    from .pooling import TABLES, check_alike, less_reference, pool, pooled_table, read_differences, read_objectives

    check_alike(files)
    trainings = "1 training" if len(files) == 1 else f"{len(files)} trainings"
    head = f"{trainings}; mean and half width of the 95 % interval over them\n\n"
    if kl_weight is not None:
        if not kl_weight >= 0:
            raise ValueError(f"--kl_weight is {kl_weight}: it must be 0 or above")
        rows = pool([read_objectives(file, kl_weight) for file in files])
        title = f"## r(w) - {kl_weight:g} KL, less that of MORL, and the p to be lower by more than {MARGIN:g}"
        sys.stdout.write(f"{head}{title}\n\n{markdown_table(pooled_table(rows, 'p not below'))}")
        return
    blend, trained = ([read_differences(file, table) for file in files] for table in TABLES)
    differences = pool([less_reference(sweep, reference) for sweep in blend])
    tables = [f"## r(w) less that of {reference}\n\n{markdown_table(pooled_table(differences))}"]
    if all(trained):
        tests = ("p equal", "to differ by more"), ("p not below", "to be lower by more")
        for p, words in tests:
            title = f"## r(w) less MORL's, in standard deviations of the base's r(w), and the p {words} than {MARGIN:g}"
            tables.append(f"{title}\n\n{markdown_table(pooled_table(pool(trained), p))}")
    sys.stdout.write(head + "\n".join(tables))
