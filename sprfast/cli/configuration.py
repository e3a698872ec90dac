"""Options from a TOML file: a table for each command, with the names of its options.

[predict]
output = "results"

[bench.run]
period = "100ms"
"""

from __future__ import annotations

import difflib
import inspect
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import typer

from sprfast.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KINDS = {bool: "true or false", int: "an integer", float: "a number"}


def apply(context: typer.Context, file: Path | None) -> Path | None:
    """Make what a file says the defaults of the command that is being called.

    Raises:
        InputError: the file cannot be read, or holds what is no option of a command or none of its
            values; the message names the file and the key.
    """
    if file is None:
        return None
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{file}: is no TOML ({error})") from error
    root = context.find_root()
    found = _checked(document, root.command, [], f"{file}:")
    for name in context.command_path.split()[1:]:
        found = found.get(name, {})
    context.default_map = found
    return file


def _checked(table: dict[str, Any], command: Any, path: list[str], place: str) -> dict[str, Any]:
    """The table of a command with the names of its parameters for those of its options; of a group,
    the tables of its commands.
    """
    commands = getattr(command, "commands", None)
    if commands is None:
        return dict(_checked_option(*item, command, f"{place} [{'.'.join(path)}]") for item in table.items())
    for name, value in table.items():
        where = f"{place} [{'.'.join([*path, name])}]"
        if not isinstance(value, dict):
            table_name = ".".join([*path, next(iter(commands))])
            raise InputError(f"{place} {name}: stands in no command's table; write it under one such as [{table_name}]")
        if name not in commands:
            raise InputError(f"{where}: there is no such command{_meant(name, commands)}")
    return {name: _checked(value, commands[name], [*path, name], place) for name, value in table.items()}


def _checked_option(name: str, value: Any, command: Any, place: str) -> tuple[str, Any]:
    """The name of an option's parameter, and its value."""
    options = {option.lstrip("-"): each for each in command.params for option in each.opts if option.startswith("--")}
    del options["config"]
    if name not in options:
        raise InputError(f"{place} {name}: there is no such option{_meant(name, options)}")
    parameter = options[name]
    kind, several = value_type(inspect.signature(command.callback).parameters[parameter.name].annotation)
    if several != isinstance(value, list) or not all(_is(each, kind) for each in (value if several else [value])):
        wanted = ("a list, each " if several else "") + _KINDS.get(kind, "a text in quotes")
        raise InputError(f"{place} {name}: {value!r} is not allowed, expected {wanted}")
    return parameter.name, value


def value_type(annotation: Any) -> tuple[type, bool]:
    """The type of an option's value or of each of them, and whether it takes several."""
    kind = get_args(annotation)[0]
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind if kind in (bool, int) else (int, float) if kind is float else str)


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else f", but {', '.join(sorted(known))}"
