"""Options and arguments that commands of several modules have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that `train` or `import` wrote.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.  [default: cuda where there is one]")]
Category = Annotated[str | None, typer.Option(help="A category of DATA, or 'all'; absent: DATA is the category itself.")]
