"""Options, arguments and groups that commands of several modules have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that `train` or `import` wrote.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.  [default: cuda where there is one]")]
Category = Annotated[
    str | None, typer.Option(help="A category of DATA, or 'all'; absent: DATA is the category itself.")
]
ModelOrExport = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, or an export of one.")]
BackendName = Annotated[
    str, typer.Option(help="auto (cpu on a CPU where that is built, else eager), or a backend that `doctor` lists.")
]
SettingName = Annotated[
    str, typer.Option("--setting", help="One that the model file holds; `calibrate --setting` adds them.")
]
PrecisionName = Annotated[
    str, typer.Option("--precision", help="Of stored feature maps: float32, bfloat16 or float16.")
]
ProcessTimeout = Annotated[
    str, typer.Option(help="Under torchrun: how long a process waits for the others before it gives up.")
]


class RunByDefault(typer.core.TyperGroup):
    """A group of commands in which the command `run` need not be written: `bench MODEL` means
    `bench run MODEL`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, with `run` put in front where no command is named."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)
