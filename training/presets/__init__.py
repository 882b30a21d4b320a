"""Presets: YAML files of settings, one for each algorithm and one for each base and size of graphics card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..algorithms import ALGORITHMS

_FOLDER = Path(__file__).parent


def preset_names() -> list[str]:
    """The names of the presets for bases."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml") if file.stem not in ALGORITHMS)


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, nested as in a configuration file.

    Args:
        name: of a preset for a base, or of an algorithm. An algorithm without a file has no settings of its own.

    Raises:
        ValueError: there is no such preset.
    """
    file = _FOLDER / f"{name}.yaml"
    if name in ALGORITHMS and not file.is_file():
        return {}
    if name not in ALGORITHMS and name not in preset_names():
        raise ValueError(f"preset {name!r}: choose one of {', '.join(preset_names())}")
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(settings, Mapping):
        raise ValueError(f"preset {file}: it must hold settings by name")
    return dict(settings)
