"""The command `bench layers`."""

from __future__ import annotations

from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import Json, ModelPath


def layers(
    model: ModelPath,
    size: Annotated[int | None, typer.Option(help="Pixels at the network's input.  [default: the model's]")] = None,
    batch: Annotated[int, typer.Option(help="Images of a call.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for all calls.")] = 10.0,
    json_: Json = False,
) -> None:
    """Time, rate and error of every layer of backend cpu."""
    from sprfast.bench.core import cases
    from sprfast.bench.core import layers as measuring
    from sprfast.formats import model as model_file

    cases.Options(size=size, batch=batch, seconds=seconds)  # refuses what is out of range
    loaded = model_file.load(model)
    document = measuring.measure(loaded, size or loaded.preprocessing.size, batch, seconds)
    console.emit(document, json_, lambda: measuring.table(document))
