"""Tables as CSV files, as JSON files and as Markdown text."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def json_bytes(content: Any) -> bytes:
    """The content of a JSON file, UTF-8. JSON has no NaN and no infinity, so both become ``null``.

    Args:
        content: numbers, strings, and mappings and sequences of them.
    """
    return json.dumps(_finite(content), indent=1, allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The content of a CSV file, UTF-8 with line feeds.

    Args:
        rows: one mapping per line. The columns are all their keys, in the order in which they first appear; a row
            without a key leaves that cell empty.
    """
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """A Markdown table of rows; a pair (mean, half width) becomes ``mean ± half``.

    Args:
        rows: one mapping per line.
        columns: which entries, in order; by default those of the first row.
    """
    names = list(rows[0]) if columns is None else list(columns)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{_number(value[0])} \N{PLUS-MINUS SIGN} {_number(value[1])}"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
