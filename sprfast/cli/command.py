"""How a command gets its place: the options that all have, readable names, help and progress."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from sprfast.cli import configuration, console

CONTEXT = {"max_content_width": 1000}  # help is as wide as the terminal
# What stands for an option's value: by its name, else by its type.
_BY_NAME = {
    "time_limit": "DURATION",
    "checkpoint_every": "DURATION",
    "process_timeout": "DURATION",
    "queue_timeout": "DURATION",
    "period": "DURATION",
    "backend": "NAME",
    "device": "DEVICE",
    "precision": "NAME",
    "setting": "NAME",
    "recipe": "NAME",
    "category": "NAME",
    "noise": "NAME",
    "level": "T:DRAWS[:WEIGHT]",
    "size": "PIXELS",
    "tile": "PIXELS",
    "window": "PIXELS",
    "size_policy": "POLICY",
    "alpha": "POLICY",
    "orientation": "POLICY",
    "frames": "POLICY",
    "profiles": "POLICY",
    "bit_depth": "BITS",
}
_BY_TYPE = {Path: "PATH", int: "N", float: "NUMBER"}
_Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=configuration.apply,
        help="Options from a TOML file, in a table of the command's name; what is given here goes before.",
    ),
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")]
_Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, help="Say what the library logs; twice: with details."
    ),
]
COMMON = {"config": (_Config, None), "quiet": (_Quiet, False), "verbose": (_Verbose, 0)}


class Command(typer.core.TyperCommand):
    """A command whose arguments are written in capitals, as its options' values are."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command, as quiet as asked for."""
        name = ctx.command_path.partition(" ")[2]
        with console.told(ctx.params["quiet"], ctx.params["verbose"]), console.going_on(name):
            return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What follows the name of the command in its usage."""
        return [self.options_metavar or "", *(_usage(each) for each in self.params if _is_argument(each))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The arguments and options in two lists."""
        for title, arguments in (("Arguments", True), ("Options", False)):
            shown = [each for each in self.get_params(ctx) if _is_argument(each) == arguments]
            if rows := [row for each in shown if (row := help_row(each, ctx))]:
                with formatter.section(title):
                    formatter.write_dl(rows)


def add(group: typer.Typer, name: str, function: Callable[..., None], example: str) -> None:
    """Make `function` the command `name` of a group.

    Args:
        function: its parameters are the arguments and options, its docstring is the help.
        example: what follows `sprfast` in a call of it.
    """
    signature = inspect.signature(function, eval_str=True)
    given = [each.replace(annotation=_readable(each)) for each in signature.parameters.values()]
    common = [
        inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for each, (annotation, default) in COMMON.items()
    ]

    @functools.wraps(function)
    def run(*, config: Path | None, quiet: bool, verbose: int, **options: Any) -> None:
        function(**options)

    run.__signature__ = signature.replace(parameters=[*given, *common])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*given, *common)}
    group.command(name, cls=Command, epilog=f"Example: sprfast {example}")(run)


def help_row(parameter: Any, context: Any) -> tuple[str, str] | None:
    """Names and help text of a parameter, as `--help` has them; None: it is hidden."""
    row: tuple[str, str] | None = parameter.get_help_record(context)
    return (parameter.metavar, row[1]) if row and _is_argument(parameter) else row


def _readable(parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter, with what stands for its value."""
    annotation, info = get_args(parameter.annotation)
    kind, _ = configuration.value_type(parameter.annotation)
    if info.metavar is None and kind is not bool:
        info = copy.copy(info)
        is_argument = isinstance(info, typer.models.ArgumentInfo)
        info.metavar = (
            parameter.name.upper() if is_argument else _BY_NAME.get(parameter.name, _BY_TYPE.get(kind, "TEXT"))
        )
    return Annotated[annotation, info]


def _is_argument(parameter: Any) -> bool:
    found: bool = parameter.param_type_name == "argument"
    return found


def _usage(argument: Any) -> str:
    several = "..." if argument.nargs != 1 else ""
    return f"{argument.metavar}{several}" if argument.required else f"[{argument.metavar}]{several}"
