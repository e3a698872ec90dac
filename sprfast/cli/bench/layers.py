"""The command `bench layers`."""

from __future__ import annotations

from typing import Annotated, cast, get_args

import typer

from sprfast.cli import console
from sprfast.cli.options import Json, ModelPath
from sprfast.config import Precision
from sprfast.errors import InputError


def layers(
    model: ModelPath,
    size: Annotated[int | None, typer.Option(help="Pixels at the network's input.  [default: the model's]")] = None,
    batch: Annotated[int, typer.Option(help="Images of a call.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for all calls.")] = 10.0,
    precision: Annotated[str, typer.Option(help="Of the 3x3 convolutions: float32 or bfloat16.")] = "float32",
    json_: Json = False,
) -> None:
    """Time, rate and error of every layer of backend cpu."""
    from sprfast.bench.core import cases
    from sprfast.bench.core import layers as measuring
    from sprfast.formats import model as model_file

    cases.BenchOptions(size=size, batch=batch, seconds=seconds)  # refuses what is out of range
    loaded = model_file.load(model)
    if precision not in get_args(Precision):
        raise InputError(f"--precision {precision}: not known, choose from float32, bfloat16")
    size = size or loaded.preprocessing.size
    document = measuring.measure(loaded, size, batch, seconds, cast(Precision, precision))
    console.emit(document, json_, lambda: measuring.table(document))
