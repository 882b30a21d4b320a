"""``diffusion-blend taste``: from the votes of a Preference Duel and its kept pictures to a reward for the trainer."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..artifacts.command_line import parse_settings, run_command
from ..artifacts.files import check_folder, write_atomically
from ..preference_learning.votes import EQUAL, FIRST, PICTURE_OPTION, SECOND, Vote, read
from .catalogue import check_names

_MODULE = '''"""A reward made of votes by ``diffusion-blend taste``; the trainer's name for it is ``taste_reward:reward``."""

from pathlib import Path

from diffusion_blend.rewards.taste import load_taste

reward = load_taste(Path(__file__).with_name("taste.json"))
'''


@dataclass(frozen=True)
class TasteConfig:
    """Make a reward of votes.

    Attributes:
        votes: the saved workflow (.json), or a text file with the votes of Preference Duel.
        pictures: the folder of the pictures that Preference Duel View kept: ``ComfyUI/output/diffusion_blend_taste``.
        prompt: what the pictures should show; rewards that compare a picture with its prompt need it.
        output: folder for the pairs (``pairs.csv``, ``pictures/``), the reward (``taste.json``) and ``taste_reward.py``.
        rewards: the features: reward names as in training, such as ``hps_v2`` and ``clip_score`` where they are installed, or
            ``module:function``.
        reward_folders: name -> local folder with that reward's model.
        allow_download: permit downloads of reward models that are not on this machine yet.
    """

    votes: str
    pictures: str
    output: str
    prompt: str = ""
    rewards: list[str] = field(default_factory=lambda: ["jpeg_compressibility", "colourfulness"])
    reward_folders: dict[str, str] = field(default_factory=dict)
    allow_download: bool = False


@dataclass(frozen=True)
class Pair:
    """Two pictures and the vote.

    Attributes:
        first: a file.
        second: a file.
        outcome: of `preference_learning.votes`.
    """

    first: Path
    second: Path
    outcome: str


def votes_in(file: Path) -> list[Vote]:
    """The votes of a workflow or a text file.

    Raises:
        ValueError: there is no such file, it is no workflow, it has no Preference Duel, no vote, or a vote without its options.
    """
    if not file.is_file():
        raise ValueError(f"votes {str(file)!r}: no such file")
    text = file.read_text(encoding="utf-8")
    if file.suffix.lower() == ".json":
        text = "\n".join(_texts_of(_workflow(text, file)))
    lines = [line.partition("#")[0] for line in text.splitlines()]
    first = next((line for line in lines if re.search(r"[<>=x]", line) and len(line.split()) > 3), "")
    if not first:
        raise ValueError(
            f"{file} holds no votes with their options: vote in Preference Duel View, and save the workflow"
        )
    adapters = len(re.split(r"[<>=x]|kl", first)[0].split())
    return [entry for entry in read(text, adapters, _refuse) if isinstance(entry, Vote)]


def _refuse(entries: Sequence[Any]) -> NoReturn:
    raise ValueError(
        f"Vote {len(entries) + 1} was typed without its options, so its pictures are not known: vote in Preference Duel View."
    )


def _workflow(text: str, file: Path) -> dict[str, Any]:
    try:
        workflow = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is no workflow, because it is not JSON ({error})") from error
    if not isinstance(workflow, dict) or "nodes" not in workflow:
        raise ValueError(
            f"{file} is no saved workflow, because it has no nodes: save the workflow itself, not its API form"
        )
    return workflow


def _texts_of(workflow: dict[str, Any]) -> list[str]:
    """The votes of every Preference Duel in a saved workflow, those in subgraphs too."""
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    duels = [node for graph in graphs for node in graph.get("nodes", []) if node.get("type") == "PreferenceDuel"]
    return [_votes_of(node.get("widgets_values")) for node in duels]


def _votes_of(values: Any) -> str:
    """The first widget's value. A front end may save the values in order, or by the widgets' names."""
    found = values.get("votes") if isinstance(values, dict) else next(iter(values or []), "")
    return found if isinstance(found, str) else ""


def pairs_of(votes: Sequence[Vote], folder: Path) -> tuple[list[Pair], int]:
    """The votes' pictures, and how many votes have none; the k-th picture of one option meets the k-th of the other.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"pictures {str(folder)!r}: no such folder")
    shown: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.png")):
        option = _option_of(file)
        if option:
            shown.setdefault(option, []).append(file)
    pairs, missing = [], 0
    for vote in votes:
        if vote.outcome not in (FIRST, SECOND, EQUAL):
            continue
        sides = [shown.get(option.text(), []) for option in (vote.first, vote.second)]
        missing += not all(sides)
        pairs += [Pair(first, second, vote.outcome) for first, second in zip(*sides, strict=False)]
    return pairs, missing


def _option_of(file: Path) -> str:
    from PIL import Image

    with Image.open(file) as picture:
        return str(picture.info.get(PICTURE_OPTION, ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    config = parse_settings(
        TasteConfig,
        "taste",
        "Make a reward of the votes of a Preference Duel.",
        sys.argv[1:] if arguments is None else arguments,
        switches=("--allow_download",),
    )
    return run_command("taste", lambda: make(config))


def make(config: TasteConfig) -> None:
    """Export the pairs, fit the reward, and say what it is worth.

    Raises:
        ValueError: see `votes_in`, `pairs_of` and `taste.fit_taste`.
    """
    check_names(config.rewards)
    output = Path(config.output)
    check_folder(output)
    pairs, missing = pairs_of(votes_in(Path(config.votes)), Path(config.pictures))
    if not pairs:
        raise ValueError(
            f"No vote has its pictures in {config.pictures}: switch on keep_pictures in Preference Duel View before you vote."
        )
    output.mkdir(parents=True, exist_ok=True)
    _export(pairs, config.prompt, output)
    taste = _fit(pairs, config)
    write_atomically(output / "taste.json", taste.text().encode())
    write_atomically(output / "taste_reward.py", _MODULE.encode())
    lines = [f"{name}: {value:+.2f}" for name, value in zip(taste.features, taste.coefficients, strict=True)]
    left = f"{missing} votes have no kept pictures and were left out.\n" if missing else ""
    sys.stdout.write(
        f"{len(pairs)} pairs in {output / 'pairs.csv'}\n{left}" + "\n".join(lines) + f"\n{taste.verdict()}\n"
    )


def _export(pairs: Sequence[Pair], prompt: str, output: Path) -> None:
    """A pairwise data set: the pictures, and a table with a row a pair."""
    (output / "pictures").mkdir(exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["prompt", "first", "second", "label_first", "label_second"])
    shares = {FIRST: (1, 0), SECOND: (0, 1), EQUAL: (0.5, 0.5)}
    for pair in pairs:
        for file in (pair.first, pair.second):
            shutil.copyfile(file, output / "pictures" / file.name)
        names = [f"pictures/{file.name}" for file in (pair.first, pair.second)]
        writer.writerow([prompt, *names, *shares[pair.outcome]])
    write_atomically(output / "pairs.csv", table.getvalue().encode())


def _fit(pairs: Sequence[Pair], config: TasteConfig) -> Any:
    import torch

    from ..artifacts.pictures import read_picture
    from .guarded import guard
    from .load import load_rewards
    from .protocol import score
    from .taste import fit_taste

    loaded = load_rewards(
        config.rewards, config.reward_folders, torch.device("cpu"), allow_download=config.allow_download
    )
    rewards = guard(loaded, advice="Fix the reward and run the command again")
    columns: dict[Path, torch.Tensor] = {}
    for file in {file for pair in pairs for file in (pair.first, pair.second)}:
        scores = score(rewards, read_picture(file)[None], [config.prompt])
        columns[file] = torch.stack([scores[name][0] for name in config.rewards])
    chosen = torch.tensor([{FIRST: 1.0, SECOND: 0.0, EQUAL: 0.5}[pair.outcome] for pair in pairs])
    sides = [torch.stack([columns[getattr(pair, side)] for pair in pairs]) for side in ("first", "second")]
    return fit_taste(config.rewards, sides[0], sides[1], chosen)
