"""One way to read a command's settings (options, and YAML files given with ``--config``) and to end a command."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .files import find_file
from .settings import range_text

Settings = TypeVar("Settings")

EARLIER = {"out": "output"}
"""Earlier spellings of options that every command still accepts."""

_LIBRARIES = {
    "accelerate", "diffusers", "fsspec", "huggingface_hub", "jsonargparse", "matplotlib", "moocore", "numpy", "peft", "PIL",
    "safetensors", "scipy", "tensorboard", "torch", "tqdm", "transformers", "yaml",
}  # fmt: skip


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
        renamed: earlier names of settings -> the present ones, beside `EARLIER`; accepted as options and in YAML files.
        defaults: dotted names -> values in place of the dataclass's defaults.

    Returns:
        The settings.
    """
    from .settings_parser import SettingsParser  # needs jsonargparse

    names = {**EARLIER, **(renamed or {})}
    parser = SettingsParser(prog=f"diffusion-blend {command}", description=description)
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; may be repeated.")
    parser.add_class_arguments(settings)
    parser.set_defaults(dict(defaults or {}))
    words = _with_values(present_spelling(arguments, names), switches)
    values: dict[str, Any] = vars(parser.instantiate(parser.parse_args(_renamed_files(words, names))))
    values.pop("config")
    return settings(**values)


def present_spelling(arguments: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Arguments with every option's earlier name replaced by the present one."""
    words: list[str] = []
    for word in arguments:
        name, separator, value = word.partition("=")
        known = name.startswith("--") and name[2:] in renamed
        words.append(f"--{renamed[name[2:]]}{separator}{value}" if known else word)
    return words


def _renamed_files(words: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Find each ``--config FILE``, and replace one with an earlier name at its top level by its content with present names."""
    result: list[str] = []
    for word in words:
        option, separator, value = word.partition("=")
        if option == "--config" and separator:
            result.append(f"{option}={_renamed_content(value, renamed)}")
        elif result and result[-1] == "--config":
            result.append(_renamed_content(word, renamed))
        else:
            result.append(word)
    return result


def _renamed_content(file: str, renamed: Mapping[str, str]) -> str:
    import yaml

    file = str(find_file(file))

    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise SystemExit(f"{file} is no text in UTF-8: save it as UTF-8") from None
    except (OSError, yaml.YAMLError):
        return file  # the parser reports a file that it cannot read
    found = [old for old in renamed if isinstance(content, dict) and _holder(content, old) is not None]
    for old in found:
        new = renamed[old]
        if _holder(content, new) is not None:
            raise SystemExit(f"{file} has {old} and {new}, which are two names of one setting: leave {old} out")
        holder = _holder(content, old)
        assert holder is not None
        # The sections of a setting's two names are the same, and its place among the others stays.
        items = [(new.rpartition(".")[2] if name == old.rpartition(".")[2] else name, holder[name]) for name in holder]
        holder.clear()
        holder.update(items)
    return yaml.safe_dump(content, sort_keys=False) if found else file


def _holder(content: dict[str, Any], dotted: str) -> dict[str, Any] | None:
    """The section of a YAML file that has a setting, by the setting's dotted name; None if there is none."""
    *sections, name = dotted.split(".")
    holder: Any = content
    for section in sections:
        holder = holder.get(section) if isinstance(holder, dict) else None
    return holder if isinstance(holder, dict) and name in holder else None


def _with_values(arguments: Sequence[str], switches: Sequence[str]) -> list[str]:
    """Give every switch that stands alone the value true."""
    return [
        f"{word}=true" if word in switches and (after is None or after.startswith("--")) else word
        for word, after in zip(arguments, [*arguments[1:], None], strict=False)
    ]


def check_options(options: Any, minimum: Mapping[str, int]) -> None:
    """Check the numbers of a parser's result.

    Args:
        options: has the options as attributes.
        minimum: option -> smallest allowed value; options that ``options`` lacks are left out.

    Raises:
        ValueError: a number is below its minimum, or any number of ``options`` is not finite.
    """
    for name, given in vars(options).items():
        for value in given if isinstance(given, list | tuple) else [given]:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"--{name} is {value}: it must be {range_text(value, None, None, None)}")
    for name, low in minimum.items():
        for value in [getattr(options, name)] if hasattr(options, name) else []:
            if value < low:
                raise ValueError(f"--{name} is {value}: it must be {range_text(value, low, None, None)}")


class CommandFailed(Exception):
    """A command's work ended early for a reason that the message gives in full."""


def run_command(name: str, work: Callable[[], None]) -> int:
    """Run a command's work and turn its expected failures into one line and an exit status.

    Args:
        name: the command's name, for the line.
        work: raises ValueError, OSError or CommandFailed for what a message explains.

    Returns:
        0 done, 1 refused or failed, 2 a library is missing, 130 interrupted from the keyboard.
    """
    try:
        work()
    except (ValueError, OSError, CommandFailed) as error:
        sys.stderr.write(f"diffusion-blend {name}: {' '.join(str(error).split())}\n")
        return 1
    except ModuleNotFoundError as error:
        return missing_library(name, error)
    except KeyboardInterrupt:
        sys.stderr.write(f"diffusion-blend {name}: interrupted\n")
        return 130
    return 0


def missing_library(name: str, error: ModuleNotFoundError) -> int:
    """Report a library of the extra ``training`` that is not installed; any other missing module is raised again."""
    if (error.name or "").partition(".")[0] not in _LIBRARIES:
        raise error
    sys.stderr.write(
        f"diffusion-blend {name}: {error.name} is not installed. "
        'Install what it needs with: pip install "diffusion-blend[training]"\n'
    )
    return 2
