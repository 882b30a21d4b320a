"""``diffusion-blend paper EXPERIMENT``: train the adapters, run the sweep, print the table in the paper's form."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from ...artifacts.command_line import EARLIER, check_options, present_spelling, run_command
from ...artifacts.files import check_folder, write_atomically
from ...artifacts.settings_parser import SettingsParser
from ..sweep.checks import check_config
from .experiment import FOLDER, Experiment, experiment_names, load_experiment, trained_file

logger = logging.getLogger("diffusion_blend")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    words = present_spelling(sys.argv[1:] if arguments is None else arguments, EARLIER)
    options = _parser().parse_args(words)
    return run_command(f"paper {options.experiment}".strip(), lambda: _list() if options.list else _run(options))


def _parser() -> SettingsParser:
    parser = SettingsParser(prog="diffusion-blend paper", description=__doc__)
    known = f"one of {', '.join(experiment_names())}, or a YAML file like {FOLDER}/*.yaml"
    parser.add_argument("experiment", nargs="?", default="", help=known)
    parser.add_argument("--list", action="store_true", help="print the experiments that come with the package")
    parser.add_argument("--output", type=Path, help="folder of the experiment; goes on there (runs/paper/EXPERIMENT)")
    parser.add_argument("--overrides", default="", help="YAML file whose entries replace the experiment's")
    parser.add_argument("--allow_download", action="store_true", help="permit downloads of models")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print what would be made and its cost")
    parser.add_argument("--card", default="a100", help="card whose speed --dry_run uses")
    parser.add_argument(
        "--seconds_per_call", type=float, default=0.0, help="a guided call of one picture, measured on your card"
    )
    return parser


def _list() -> None:
    for name in experiment_names():
        experiment = load_experiment(name, Path("runs/paper") / name)
        sys.stdout.write(f"{name:<10}{experiment.title}\n")


def _run(options: Namespace) -> None:
    if not options.experiment:
        raise ValueError(f"no experiment: give one of {', '.join(experiment_names())}; --list says what they are")
    check_options(options, {"seconds_per_call": 0})
    output = options.output or Path("runs/paper") / Path(options.experiment).stem
    experiment = load_experiment(options.experiment, output, options.overrides)
    check_config(experiment.sweep)
    check_folder(output)
    if options.dry_run:
        sys.stdout.write(_described(experiment, output, _seconds(options)))
        return
    sys.stdout.write(f"{run_experiment(experiment, output, allow_download=options.allow_download)}\n{output}\n")


def _seconds(options: Namespace) -> float:
    from .costs import CARDS

    if options.seconds_per_call > 0:
        return options.seconds_per_call
    if options.card not in CARDS:
        raise ValueError(
            f"the speed of --card {options.card} is not known ({', '.join(CARDS)} is): measure it with a sweep of the method "
            "base, and give s/picture divided by the steps as --seconds_per_call"
        )
    return CARDS[options.card]


def _described(experiment: Experiment, output: Path, seconds: float) -> str:
    from .costs import cost_table

    sweep = experiment.sweep
    made = [name for name in experiment.trainings if trained_file(name, output).exists()]
    lines = [
        f"# {experiment.title}",
        "",
        f"base {sweep.base.path}, prompts {sweep.prompts.source}, {sweep.steps} steps, eta {sweep.eta:g}, guidance "
        f"{sweep.guidance_scale:g}; methods {', '.join(sweep.methods)}.",
        f"Adapters to train: {', '.join(experiment.trainings) or 'none'}; there already: {', '.join(made) or 'none'}.",
        f"Hours are those of one card at {seconds:.3f} s a guided call of one picture.",
        "",
    ]
    return "\n".join(lines) + cost_table(experiment, seconds)


def run_experiment(experiment: Experiment, output: Path, *, allow_download: bool) -> str:
    """Train the adapters that are missing, run the sweep, and write the report.

    Returns:
        The report, which ``paper.md`` in the output folder holds as well.

    Raises:
        ValueError: as the trainer's and the sweep's.
    """
    from ...artifacts.workers import Worker
    from ..sweep.prepare import prepare
    from ..sweep.report import write_report
    from ..sweep.statistics import collect_results
    from .tables import paper_report

    for name in experiment.trainings:
        _train(name, experiment, output, allow_download=allow_download)
    settings = dataclasses.replace(experiment.sweep, allow_download=allow_download)
    sweep = prepare(settings, Worker.of_environment())
    rows = sweep.run()
    write_report(sweep, rows)
    adapters, rewards = list(settings.adapters), list(settings.rewards)
    results = collect_results(rows, adapters, rewards, sweep.scales)
    report = paper_report(experiment.title, results, rewards, experiment.form)
    write_atomically(output / "paper.md", report.encode())
    return report


def _train(name: str, experiment: Experiment, output: Path, *, allow_download: bool) -> None:
    from ...training.train import train

    file = trained_file(name, output)
    if file.exists():
        return
    config = experiment.trainings[name]
    resume = (Path(config.output) / "checkpoints").exists()
    trained = train(dataclasses.replace(config, resume=resume, allow_download=allow_download))
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(trained, file.with_suffix(".partial"))
    file.with_suffix(".partial").replace(file)
