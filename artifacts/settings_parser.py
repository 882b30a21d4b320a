"""A parser whose errors are one line: the option, its value, and what to give instead."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence, Set
from typing import NoReturn

from jsonargparse import ArgumentParser

_EXPECTED = re.compile(
    r'.*Parser key "(?P<key>[^"]+)"[^:]*:.*?Expected an? (?P<type>.+?)\. Got value: (?P<value>.*)', re.DOTALL
)
_SECTION = re.compile(r'.*Parser key "(?P<key>[^"]+)":.*Unable to load config "(?P<value>.*)"', re.DOTALL)
_NO_COMMAND = re.compile(r'expected "subcommand" to be one of \{(?P<names>.*)\}, but it was not provided\.')
_REQUIRED = "the following arguments are required: "
_UNKNOWN = "unrecognized arguments: "
_WANTED = {
    "list": "give a list, such as '[{value}]'",
    "dict": "give a value for each name, such as --{key}.{name} 1",
    "float": "give a number",
    "int": "give a whole number",
    "bool": "give true or false",
}
"""Type -> what to give."""


class SettingsParser(ArgumentParser):
    """jsonargparse's parser, without the list of all options before each error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write the error in one line and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        said = readable(message, self._option_string_actions)
        prog = (getattr(ex, "subcommand_parser", None) or self).prog.replace(" [options]", "")
        sys.stderr.write(f"{prog}: {said}{'' if said.endswith('?') else '.'} '{prog} --help' lists the options\n")
        self.exit(2)


def readable(message: str, options: Iterable[str]) -> str:
    """The parser's message in words for users, on one line.

    Args:
        message: the parser's own.
        options: all options, with their dashes.
    """
    if message.startswith(_REQUIRED):
        return _missing(message.removeprefix(_REQUIRED).split(", "), set(options))
    if message.startswith(_UNKNOWN):
        return _unknown(message.removeprefix(_UNKNOWN).split(), list(options))
    expected = _EXPECTED.fullmatch(message)
    if expected:
        return f"--{expected['key']} is {expected['value'].strip()}: {_wanted(expected)}"
    command = _NO_COMMAND.fullmatch(message)
    if command:
        return f"needs a command: one of {', '.join(command['names'].split(','))}"
    section = _SECTION.fullmatch(message)
    inside = [name for name in options if section and name.startswith(f"--{section['key']}.")]
    if section and inside:
        return f"--{section['key']} is {section['value']}: it is a group of settings, such as {inside[0]} {section['value']}"
    return " ".join(message.split()).rstrip(".")


def _missing(names: Sequence[str], options: Set[str]) -> str:
    # The parser names an argument "render.output" where the command "render" lacks it, and a positional one without dashes.
    command = names[0].partition(".")[0] if "." in names[0] and f"--{names[0]}" not in options else ""
    own = [name.removeprefix(f"{command}.") for name in names] if command else names
    shown = [f"--{name}" if command or f"--{name}" in options else name for name in own]
    return f"{command} needs {', '.join(shown)}".lstrip()


def _wanted(expected: re.Match[str]) -> str:
    kind = expected["type"]
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind)
    choices = re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", kind)
    if choices:
        return f"choose one of {choices[1].replace(chr(39), '')}"
    value = expected["value"].strip()
    word = re.search(r"[\w:/.]+", value)
    return _WANTED.get(name, f"give a {name}").format(
        key=expected["key"], value=value, name=word[0] if word else "NAME"
    )


def _unknown(words: list[str], options: list[str]) -> str:
    given = words[0].partition("=")[0]
    if not given.startswith("-"):
        return f"does not take {given!r}: options begin with --"
    # "--steps" for "--sampling.steps" is as likely as a slip of the finger.
    near = [name for name in options if name.endswith(f".{given.lstrip('-')}")]
    near = near or difflib.get_close_matches(given, options, 1, 0.7)
    return f"there is no option {given}" + (f": did you mean {' or '.join(near)}?" if near else "")
