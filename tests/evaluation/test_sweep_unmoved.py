"""The numbers of every method are those that were recorded before the methods were moved into one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recorded_sweep import RECORD, measure


def test_every_methods_numbers_are_those_recorded(tmp_path: Path) -> None:
    recorded = json.loads(RECORD.read_text())
    found = {(row["method"], row["w_a"], row["kl_scale"], row["image"]): row for row in measure(tmp_path)}
    assert len(found) == len(recorded) > 100
    for row in recorded:
        now = found[row["method"], row["w_a"], row["kl_scale"], row["image"]]
        assert set(now) - {"log_weight"} == set(row)  # path weights came later
        for name, value in row.items():
            if isinstance(value, float):
                # Rewards see pictures rounded to 8 bits since; redness moves by at most 1 / 255.
                assert now[name] == pytest.approx(value, rel=2e-3, abs=5e-3), (row, name)
            else:
                assert now[name] == value, (row, name)
