"""The command line: bad arguments end in one line before any work, and help and refusals import no heavy library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from diffusion_blend import __version__, command

PROBE = """
import contextlib, io, json, sys
from diffusion_blend import command
results = []
for words in json.loads(sys.stdin.read()):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = command.main(words)
        except SystemExit as exit:
            status = exit.code
    heavy = sorted({"torch", "diffusers", "transformers", "accelerate", "scipy", "matplotlib"} & set(sys.modules))
    results.append([status, out.getvalue(), err.getvalue(), heavy])
print(json.dumps(results))
"""

Outcome = tuple[int, str, str, list[str]]


def outcomes(cases: list[list[str]], folder: Path) -> list[Outcome]:
    """Run commands one after the other in a fresh process; returns the outcome of each."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE], input=json.dumps(cases), capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])]


HELP = [["--help"], ["--version"], *([name, "--help"] for name in command.COMMANDS)]
SWEEP = ["sweep", "--output", "out", "--adapters.a", "a.safetensors", "--rewards.a", "colourfulness"]
TRAIN = ["train", "--output", "out", "--rewards.colourfulness", "1"]
REFUSED = {
    "diffusion-blend train: needs --output.": ["train"],
    "there is no option --ouput: did you mean --output?": ["train", "--ouput", "out", "--rewards.colourfulness", "1"],
    "no option --steps: did you mean --sampling.steps?": [*TRAIN, "--steps", "5"],
    "--rewards is colourfulness: give a value for each name, such as --rewards.colourfulness 1": [
        "train", "--output", "out", "--rewards", "colourfulness",
    ],
    "--rewards is high: give a number": ["train", "--output", "out", "--rewards.colourfulness", "high"],
    "--algorithm is rwr: it is a group of settings, such as --algorithm.name rwr": [*TRAIN, "--algorithm", "rwr"],
    "--base.precision is half: choose one of fp32, bf16, fp16": [*TRAIN, "--base.precision", "half"],
    "--images is file.txt: give a list, such as '[file.txt]'": [
        "score", "--images", "file.txt", "--prompts", "file.txt", "--rewards", "[colourfulness]",
    ],
    "write the prompts into one": ["score", "--images", "[file.txt]", "--prompts", "a dog", "--rewards", "[colourfulness]"],
    "diffusion-blend train: does not take 'help'": [*TRAIN, "help"],
    "diffusion-blend pool: needs sweeps.": ["pool"],
    "diffusion-blend miniature: render needs --output.": ["miniature", "render"],
    "diffusion-blend miniature: needs a command: one of train, check": ["miniature"],
    "--weights is half: give a number": ["bake", "--base", "b", "--adapters", "a", "--output", "x", "--weights", "half"],
    "--seed is x: give a whole number": ["miniature", "check", "--seed", "x"],
    "no command 'traim': did you mean train?": ["traim"],
    "sampling.steps is 0": [*TRAIN, "--sampling.steps", "0"],
    "unknown reward 'beauty'": ["train", "--output", "out", "--rewards.beauty", "1"],
    "file.txt is a file and not a folder": ["train", "--output", "file.txt/out", "--rewards.colourfulness", "1"],
    "images_per_point is 0": [*SWEEP, "--images", "0"],
    "unknown method 'magic'": [*SWEEP, "--methods", "[magic]"],
    "there is none named 'b'": [*SWEEP, "--adapters.b", "b", "--methods", "[code]"],
    "adapters.a is 'a.safetensors': no such file": SWEEP,
    "file.txt is a file": ["sweep", "--output", "file.txt", *SWEEP[3:]],
    "no rewards": ["score", "--images", "[file.txt]", "--prompts", "file.txt", "--rewards", "[]"],
    "no such picture": ["score", "--images", "[none.png]", "--prompts", "file.txt", "--rewards", "[colourfulness]"],
    "it is a folder": [
        "score", "--images", "[file.txt]", "--prompts", "file.txt", "--rewards", "[colourfulness]", "--output", ".",
    ],
    "--count is 2000: this world has": ["miniature", "prompts", "--output", "p.txt", "--count", "2000"],
    "file.txt exists and holds no prompts of this world": ["miniature", "prompts", "--output", "file.txt", "--count", "2"],
    "--count is 0": ["miniature", "check", "--count", "0"],
    "No miniature model in none": ["miniature", "check", "--model", "none"],
    "--columns is 0": ["miniature", "render", "--output", "x.png", "--columns", "0"],
    "ends in .png": ["miniature", "render", "--output", "x.txt"],
    "is not a prompt of the miniature": ["miniature", "render", "--output", "x.png", "--prompt", "a dog"],
    "--steps is 0": ["miniature", "train", "--output", "out", "--steps", "0"],
    "'beauty' is no reward": ["miniature", "adapters", "--output", "out", "beauty"],
    "--points is 0": ["evaluate", "exact", "--points", "0", "--output", "out"],
    "--seeds is -1": ["evaluate", "learned", "--seeds", "-1", "--output", "out"],
    "cannot write into file.txt": ["evaluate", "exact", "--output", "file.txt"],
    "--images_per_point is 0": ["demo", "--images", "0"],
    "--grid is 0": ["demo", "--divisions", "0"],
    "--guidance_scale is nan": ["miniature", "render", "--output", "x.png", "--guidance_scale", ".nan"],
    "--alpha is inf": ["evaluate", "stacked", "--alpha", ".inf", "--output", "out"],
    "--learning_rate is nan": ["bake", "--base", "b", "--adapters", "a", "--output", "x.safetensors", "--learning_rate", ".nan"],
    "--seconds_per_call is nan": ["paper", "table1", "--dry_run", "--seconds_per_call", ".nan"],
    "no command 'paint'": ["paint"],
}  # fmt: skip
"""Part of the message -> arguments."""


def test_help_and_refusals_need_no_heavy_library_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("a prompt\n")
    found = outcomes([*HELP, *REFUSED.values()], tmp_path)
    assert [(status, err) for status, _, err, _ in found[: len(HELP)]] == [(0, "")] * len(HELP)
    assert found[1][1] == f"diffusion-blend {__version__}\n"
    for message, (status, out, err, _) in zip(REFUSED, found[len(HELP) :], strict=True):
        assert status in (1, 2) and out == "", (message, out)
        assert any(part in err for part in message.split("|")), (message, err)
        assert "Traceback" not in err
    assert {name for *_, heavy in found for name in heavy} == set()
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_the_probe_sees_heavy_libraries(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import scipy\n")
    cases = [["score", "--images", "[x.png]", "--prompts", "x", "--rewards", "[own:r]"]]
    (tmp_path / "x.png").write_bytes(b"")
    [(status, _, err, heavy)] = outcomes(cases, tmp_path)
    assert status == 1 and "no such text file" in err and heavy == []


def test_a_missing_library_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['torch'] = None\n" + PROBE
    (tmp_path / "a.safetensors").write_bytes(b"")
    cases = [["evaluate", "exact", "--output", "out"], [*SWEEP], [*TRAIN]]
    done = subprocess.run(
        [sys.executable, "-P", "-c", hidden], input=json.dumps(cases), capture_output=True, text=True, cwd=tmp_path
    )
    for status, _, err, _ in json.loads(done.stdout):
        assert status == 2 and "torch is not installed" in err and 'pip install "diffusion-blend[training]"' in err
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("content", ["images: 3\nout: there\n", "images_per_point: 3\noutput: there\n"])
def test_earlier_spellings_are_accepted_in_yaml_and_on_the_command_line(tmp_path: Path, content: str) -> None:
    from diffusion_blend.evaluation.sweep.command import parse

    (tmp_path / "sweep.yaml").write_text(content + "adapters: {a: x}\nrewards: {a: colourfulness}\n")
    config = parse(["--config", str(tmp_path / "sweep.yaml")])
    assert (config.images_per_point, config.output) == (3, "there")
    assert parse([f"--config={tmp_path / 'sweep.yaml'}", "--images=5", "--out", "x"]).images_per_point == 5


def test_two_names_of_one_setting_are_refused(tmp_path: Path) -> None:
    from diffusion_blend.evaluation.sweep.command import parse

    (tmp_path / "sweep.yaml").write_text("images: 3\nimages_per_point: 4\noutput: x\n")
    with pytest.raises(SystemExit, match="two names of one setting"):
        parse(["--config", str(tmp_path / "sweep.yaml")])
