"""Options and arguments that commands of several modules have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that `train` or `import` wrote.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.  [default: cuda where there is one]")]
Category = Annotated[str | None, typer.Option(help="A category of DATA, or 'all'; absent: DATA is the category itself.")]
ModelOrExport = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, or an export of one.")]
BackendName = Annotated[str, typer.Option(help="auto (cpu on a CPU where that is built, else eager), or a backend that `doctor` lists.")]
SettingName = Annotated[str, typer.Option("--setting", help="One that the model file holds; `calibrate --setting` adds them.")]
PrecisionName = Annotated[str, typer.Option("--precision", help="Of stored feature maps: float32, bfloat16 or float16.")]
