"""One way to read a command's settings: options, and YAML files given with ``--config``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

Settings = TypeVar("Settings")


def parse_settings(
    settings: type[Settings],
    command: str,
    description: str,
    arguments: Sequence[str],
    *,
    switches: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Read a command's settings from its arguments.

    Args:
        settings: a dataclass; its docstring describes every option.
        command: the command's name, for the usage line.
        description: of the command.
        arguments: without the program's name. ``--print_config`` prints the settings as YAML and exits.
        switches: options that mean ``true`` when they stand alone.
        renamed: earlier spellings of options -> the present ones.
        defaults: dotted names -> values in place of the dataclass's defaults.

    Returns:
        The settings.
    """
    parser = ArgumentParser(prog=f"diffusion-blend {command}", description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; may be repeated.")
    parser.add_class_arguments(settings)
    parser.set_defaults(dict(defaults or {}))
    words = [_present_spelling(word, renamed or {}) for word in arguments]
    values: dict[str, Any] = vars(parser.instantiate(parser.parse_args(_with_values(words, switches))))
    values.pop("config")
    return settings(**values)


def _present_spelling(word: str, renamed: Mapping[str, str]) -> str:
    name, separator, value = word.partition("=")
    return renamed.get(name, name) + separator + value


def _with_values(arguments: Sequence[str], switches: Sequence[str]) -> list[str]:
    """Give every switch that stands alone the value true."""
    following = [*arguments[1:], "--"]
    return [
        f"{word}=true" if word in switches and after.startswith("--") else word
        for word, after in zip(arguments, following, strict=True)
    ]
