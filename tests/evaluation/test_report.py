"""Tables and the commands that print them."""

from __future__ import annotations

import json
import math
from argparse import Namespace

import pytest
from diffusion_blend.artifacts import files
from diffusion_blend.artifacts.command_line import EARLIER, present_spelling
from diffusion_blend.artifacts.tables import json_bytes, markdown_table
from diffusion_blend.evaluation.gaussian import command, exact_study
from diffusion_blend.evaluation.gaussian import learned_study as learned


def test_a_table_by_hand():
    rows = [
        {"name": "a", "steps": 8, "error": 0.12345, "mean": (1.0, 0.25)},
        {"name": "b", "steps": 16, "error": math.nan, "mean": (12.0, 2e-5)},
    ]
    assert markdown_table(rows) == (
        "| name | steps | error | mean |\n|---|---|---|---|\n"
        "| a | 8 | 0.123 | 1.000 \N{PLUS-MINUS SIGN} 0.250 |\n| b | 16 | - | 12.0 \N{PLUS-MINUS SIGN} 2.0e-05 |\n"
    )
    assert markdown_table(rows, ["steps"]) == "| steps |\n|---|\n| 8 |\n| 16 |\n"


def test_json_has_null_for_numbers_that_it_cannot_hold():
    content = {"rows": [{"error": math.nan, "mean": (1.0, -math.inf), "steps": 8, "name": "nan"}]}
    wanted = {"rows": [{"error": None, "mean": [1.0, None], "steps": 8, "name": "nan"}]}

    def refuse(word):
        raise AssertionError(word)

    assert json.loads(json_bytes(content), parse_constant=refuse) == wanted


def test_a_study_writes_strict_json_at_once(tmp_path, monkeypatch):
    class Cut(Exception):
        """While a file is written."""

    def cut(descriptor):
        raise Cut

    options = Namespace(output=tmp_path)
    command._publish(options, "exact", "few points", {"Table": [{"error": math.nan}]})
    written = (tmp_path / "exact.json").read_bytes()
    assert b"NaN" not in written
    monkeypatch.setattr(files.os, "fsync", cut)
    with pytest.raises(Cut):
        command._publish(options, "exact", "other points", {"Table": [{"error": 1.0}]})
    assert (tmp_path / "exact.json").read_bytes() == written and not list(tmp_path.glob(".*"))


def test_the_exact_command_prints_what_it_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exact_study, "ALPHAS", (1.0,))
    monkeypatch.setattr(exact_study, "WEIGHTS", (0.5,))
    weak = exact_study.weak_error
    monkeypatch.setattr(exact_study, "weak_error", lambda seed, count: weak(seed, count, repeats=2, steps=(4, 8)))
    assert command.main(["exact", "--points", "300", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "exact.md").read_text(encoding="utf-8")
    assert "seed 0, 300 points" in printed and printed.count("| right/") == 2
    tables = json.loads((tmp_path / "exact.json").read_text(encoding="utf-8"))["tables"]
    assert len(tables["Stochastic against blend (right/centre, alpha 1, w .5)"]) == 4
    assert (tmp_path / "exact.png").stat().st_size > 10_000


def test_the_learned_command_has_a_row_for_every_setting(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learned, "ALPHAS", (1.0,))
    monkeypatch.setattr(learned, "SETS", learned.SETS[:1])
    effort = learned.Effort

    def small(points, seeds, only_pairs):
        return effort(base_steps=5, adapter_steps=5, points=points, seeds=seeds, only_pairs=only_pairs)

    monkeypatch.setattr(learned, "Effort", small)
    assert command.main(["learned", "--points", "60", "--seeds", "0", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (
        "| right/up | 1.000 |" in printed
        and "| right/centre | 1.000 |" in printed
        and "| 3 rewards | 1.000 |" in printed
    )
    assert (tmp_path / "learned.png").stat().st_size > 10_000


def test_earlier_spellings_are_accepted() -> None:
    words = present_spelling(["oracle", "--out", "x"], EARLIER)
    assert words == ["oracle", "--output", "x"]
    old, new = command._parser().parse_args(words), command._parser().parse_args(["exact", "--output", "x"])
    assert old[old.subcommand].output == new[new.subcommand].output
    assert command._STUDIES[old.subcommand] is command._STUDIES[new.subcommand]
