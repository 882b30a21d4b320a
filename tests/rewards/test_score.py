"""``diffusion-blend score`` and the command's table."""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_blend import command
from diffusion_blend.artifacts.command_line import parse_settings
from diffusion_blend.artifacts.pictures import read_picture, to_pil
from diffusion_blend.rewards import scoring
from diffusion_blend.rewards.command import ScoreConfig, check
from diffusion_blend.rewards.pixels import colourfulness
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (16, 16), "red").save(pictures / "b.png")
    Image.new("RGB", (16, 16), "grey").save(pictures / "a.png")
    Image.new("RGB", (24, 8), "blue").save(pictures / "c.png")
    (tmp_path / "prompts.txt").write_text("a grey square\na red square\na blue bar\n")
    return tmp_path


def test_scores_are_written_and_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", "--images", f"[{folder / 'pictures'}]", "--prompts", str(folder / "prompts.txt")]
    words += ["--rewards", "[colourfulness, jpeg_incompressibility]", "--out", str(folder / "table.csv")]
    assert command.main(words) == 0
    with (folder / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert [row["prompt"] for row in rows] == ["a grey square", "a red square", "a blue bar"]
    expected = [float(colourfulness(read_picture(Path(row["image"]))[None], [""])) for row in rows]
    assert [float(row["colourfulness"]) for row in rows] == pytest.approx(expected)
    assert expected[0] == 0 and expected[1] > 50
    printed = capsys.readouterr().out
    assert "a.png" in printed and f"{sum(expected) / 3:.4f}" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    ("images", "prompts", "rewards", "message"),
    [
        ("[nowhere.png]", "prompts.txt", "[colourfulness]", "no such picture: nowhere.png"),
        ("[pictures]", "none.txt", "[colourfulness]", "no such text file"),
        ("[pictures]", "two.txt", "[colourfulness]", "2 prompts in .*two.txt for 3 pictures"),
        ("[pictures]", "prompts.txt", "[beauty]", "unknown reward 'beauty'"),
        ("[prompts.txt]", "one.txt", "[colourfulness]", "prompts.txt is not a readable picture"),
    ],
)
def test_what_cannot_be_scored(
    images: str,
    prompts: str,
    rewards: str,
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    Path("two.txt").write_text("a\nb\n")
    Path("one.txt").write_text("a\n")
    assert command.main(["score", "--images", images, "--prompts", prompts, "--rewards", rewards]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_pictures_survive_the_way_through_a_file(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0)) / 255
    to_pil(image).save(tmp_path / "x.png")
    torch.testing.assert_close(read_picture(tmp_path / "x.png"), image)


def test_the_table_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in command.COMMANDS)
    assert command.main([]) == 2
    assert command.main(["paint"]) == 2
    assert "no command 'paint'" in capsys.readouterr().err


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    """In a Python where jsonargparse cannot be imported, the command says how to install it."""
    (tmp_path / "jsonargparse.py").write_text("raise ModuleNotFoundError('gone', name='jsonargparse')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from diffusion_blend.command import main; sys.exit(main(['train', '-h']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        'jsonargparse is not installed. Install what it needs with: pip install "diffusion-blend[training]"'
        in done.stderr
    )


def test_importing_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, diffusion_blend.command; print([m for m in ('torch', 'diffusers', 'comfy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_training_never_imports_comfyui() -> None:
    code = (
        "import pkgutil, importlib, sys, diffusion_blend.training as t\n"
        "skip = ('__main__')\n"
        "for m in pkgutil.walk_packages(t.__path__, t.__name__ + '.'):\n"
        "    if not m.name.endswith(skip): importlib.import_module(m.name)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('comfy', 'comfy_api', 'folder_paths', 'server')])\n"
        "print([m for m in sys.modules if m.startswith(('diffusion_blend.nodes', 'diffusion_blend.evaluation'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["[]", "[]"], done.stderr[-2000:]


def test_output_has_an_earlier_spelling() -> None:
    words = ["--images", "[a.png]", "--prompts", "p.txt", "--rewards", "[colourfulness]", "--allow_download"]
    for word in ("--out", "--output"):
        options = {"switches": ("--allow_download",), "renamed": {}}
        settings = parse_settings(ScoreConfig, "score", "", [*words, f"{word}=x.csv"], **options)
        assert settings.output == "x.csv" and settings.allow_download


def words(folder: Path, output: str = "table.csv") -> list[str]:
    return [
        "score", "--images", f"[{folder / 'pictures'}]", "--prompts", str(folder / "prompts.txt"),
        "--rewards", "[colourfulness]", "--output", str(folder / output),
    ]  # fmt: skip


def test_an_interrupted_table_goes_on_and_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words(folder, "whole.csv")) == 0
    monkeypatch.setattr(scoring, "PART", 1)
    seen: list[int] = []
    part = scoring._score_part

    def broken(rewards: Any, work: Any, numbers: range) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(numbers.start)
        return part(rewards, work, numbers)

    monkeypatch.setattr(scoring, "_score_part", broken)
    assert command.main(words(folder)) == 130
    assert not (folder / "table.csv").exists() and "interrupted" in capsys.readouterr().err
    again: list[int] = []
    monkeypatch.setattr(scoring, "_score_part", lambda r, w, n: (again.append(n.start), part(r, w, n))[1])
    assert command.main([*words(folder), "--batch", "2"]) == 0
    assert seen == [0, 1] and again == [2]
    assert (folder / "table.csv").read_text() == (folder / "whole.csv").read_text()
    assert not list(folder.glob(".*"))


OWN = """
def raises(images, prompts):
    if images.shape[-1] == 24:
        raise KeyError("no blue")
    return images.mean((1, 2, 3))

def short(images, prompts):
    return images.mean((1, 2, 3))[:1]
"""


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            "own_scores:raises",
            r"c\.png: reward 'own_scores:raises' raised KeyError: 'no blue' \(own_scores\.py, line 4\)\. Fix",
        ),
        (
            "own_scores:short",
            r"a\.png to b\.png \(2 pictures\): reward 'own_scores:short' returned shape \(1,\) for 2 images",
        ),
        ("own_broken:reward", r"own_broken:reward': cannot import it as module:function \(NameError"),
    ],
)
def test_a_reward_that_fails_is_named_with_its_pictures(
    reward: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    (folder / "own_scores.py").write_text(OWN)
    (folder / "own_broken.py").write_text("reward = undefined\n")
    before = {file.name for file in folder.iterdir()}
    assert command.main([*words(folder), "--rewards", f"[{reward}]"]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert {file.name for file in folder.iterdir()} - {"__pycache__"} == before


def test_parts_that_are_scored_stay_when_the_reward_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoring, "PART", 1)
    monkeypatch.syspath_prepend(str(folder))
    (folder / "own_parts.py").write_text(OWN)
    chosen = [*words(folder), "--rewards", "[own_parts:raises]"]
    assert command.main(chosen) == 1 and "c.png: reward" in capsys.readouterr().err
    assert sorted(file.name for file in (folder / ".table.csv.parts").glob("0*")) == ["000000.json", "000001.json"]


@pytest.mark.parametrize("content", ["image,prompt,label\na.png,a,1\n", "image,prompt\n", "notes\n", "\x89PNG\n"])
def test_a_file_that_is_no_table_of_scores_is_not_replaced(
    content: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "table.csv").write_bytes(content.encode("latin-1"))
    assert command.main(words(folder)) == 1
    assert "table.csv exists and is no table of this command: choose another name, or remove" in capsys.readouterr().err
    assert (folder / "table.csv").read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize("content", ["", "image,prompt,colourfulness,own:reward\nx.png,x,1,2\n"])
def test_an_earlier_table_of_scores_is_replaced(content: str, folder: Path) -> None:
    (folder / "table.csv").write_text(content)
    assert command.main(words(folder)) == 0
    assert (folder / "table.csv").read_text().startswith("image,prompt,colourfulness\n")


def test_parts_of_other_pictures_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".table.csv.parts").mkdir()
    (folder / ".table.csv.parts/settings.json").write_text("other")
    assert command.main(words(folder)) == 1
    assert "delete the folder, or give another output" in capsys.readouterr().err


def test_parts_of_another_reward_model_are_refused(folder: Path) -> None:
    config = ScoreConfig([str(folder / "pictures")], str(folder / "prompts.txt"), ["colourfulness"])
    parts = folder / "parts"
    scoring.Parts(parts, check(config)).open()
    scoring.Parts(parts, check(config)).open()
    other = dataclasses.replace(config, reward_folders={"colourfulness": "elsewhere"})
    with pytest.raises(ValueError, match=r"other pictures, prompts, rewards or reward_folders"):
        scoring.Parts(parts, check(other)).open()


@pytest.mark.parametrize("reading", [1, 2])
def test_a_process_that_is_overtaken_at_the_end_reports_the_table(
    reading: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process writes the table and removes the parts while this one reads them for the first or second time."""
    assert command.main(words(folder, "whole.csv")) == 0
    capsys.readouterr()
    rows, readings = scoring.Parts.rows, []

    def overtaken(parts: scoring.Parts) -> Any:
        readings.append(1)
        if len(readings) == reading:
            shutil.copyfile(folder / "whole.csv", folder / "table.csv")
            parts.remove()
        yield from rows(parts)

    monkeypatch.setattr(scoring.Parts, "rows", overtaken)
    assert command.main(words(folder)) == 0
    assert "table.csv is written" in capsys.readouterr().out
    assert (folder / "table.csv").read_text() == (folder / "whole.csv").read_text()
    assert not list(folder.glob(".*"))


def test_parts_that_somebody_deleted_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deleted(parts: scoring.Parts) -> Any:
        parts.remove()
        yield from ()
        raise FileNotFoundError

    monkeypatch.setattr(scoring.Parts, "rows", deleted)
    with pytest.raises(FileNotFoundError):
        scoring.score_work(check(parse_settings(ScoreConfig, "score", "", words(folder)[1:])))


def test_memory_does_not_grow_with_the_number_of_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most the batch that is scored and the next one, with the picture that did not fit into it, are alive."""
    alive: list[weakref.ref[Any]] = []
    most = [0]
    read = scoring.read_picture

    def counted(path: Path) -> Any:
        picture = read(path)
        alive.append(weakref.ref(picture))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        return picture

    monkeypatch.setattr(scoring, "read_picture", counted)
    for i in range(20):
        Image.new("RGB", (8, 8), (i, 2 * i, 0)).save(folder / f"pictures/many{i:02d}.png")
    (folder / "prompts.txt").write_text("colours\n")
    assert command.main([*words(folder), "--batch", "4"]) == 0
    assert len(alive) == 23 and most[0] <= 9


def test_of_many_pictures_only_the_means_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MOST_PRINTED", 1)
    rows = [{"image": "a", "prompt": "", "r": 1.0}, {"image": "b", "prompt": "", "r": 2.0}]
    assert scoring.printed_table(iter(rows), 2).splitlines()[1:] == ["mean of 2 pictures        1.5000"]
