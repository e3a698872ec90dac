"""The reference of the command line, made from the commands themselves.

python -m sprfast.cli.reference >docs/command-line.md
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import typer

from sprfast.cli.app import app
from sprfast.cli.command import COMMON, help_row

INTRODUCTION = """\
# Command line

Made by `make docs` from the commands themselves; `sprfast COMMAND --help` prints the same.

Data goes to stdout, progress and messages to stderr. On a terminal progress is a line that moves.
Elsewhere it is a line after 3 seconds, and then every 10. `sprfast --install-completion` makes the
shell complete commands and options.

Every command has these options too:

| option | |
|---|---|
| `--config FILE` | Options from a TOML file, in a table of the command's name; what is given here goes before. |
| `-q, --quiet` | Say nothing but warnings and errors. |
| `-v, --verbose` | Say what the library logs; twice: with details. |

A file for `--config` has a table for each command, and in it the options by their long names:

```
[predict]
output = "results"
setting = "single"

[bench.run]
period = "100ms"
```

A name that is no option, or a value of another type, is refused with its place. Paths are relative
to the folder in which the command runs.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a check did not hold, or an image ended in ERROR |
| 2 | usage or input |
| 3 | a missing driver, device or library |
| 128 + n | stopped by signal n |
| 141 | who reads the answer is gone |
"""


def document() -> str:
    """The whole reference, as Markdown."""
    root = typer.main.get_command(app)
    return "\n".join([INTRODUCTION, *_sections(root, "sprfast", None)])


def _sections(command: Any, name: str, parent: Any) -> Iterator[str]:
    """A section of the command, then one of each of its sub-commands."""
    context = command.context_class(command, info_name=name, parent=parent)
    yield _section(command, context)
    for each, sub in getattr(command, "commands", {}).items():
        yield from _sections(sub, each, context)


def _section(command: Any, context: Any) -> str:
    usage = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    shown = [each for each in command.get_params(context) if each.name not in COMMON]
    parts = [f"## {context.command_path}", _wrapped(command.help), f"```\n{usage}\n```"]
    records = [(each.param_type_name, *row) for each in shown if (row := help_row(each, context))]
    for kind in ("argument", "option"):
        rows = [
            f"| `{_cell(names)}` | {_cell(text)} |" for of, names, text in records if of == kind and names != "--help"
        ]
        if rows:
            parts.append("\n".join([f"| {kind} | |", "|---|---|", *rows]))
    if command.epilog:
        example = command.epilog.removeprefix("Example: ")
        parts.append(f"Example:\n\n```\n{example}\n```")
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """In one line, and with no end of the cell in it."""
    return " ".join(text.split()).replace("|", "\\|")


def _wrapped(text: str | None) -> str:
    return textwrap.fill(" ".join(inspect.cleandoc(text or "").split()), 100, break_on_hyphens=False)


if __name__ == "__main__":
    sys.stdout.write(document())
