"""The command `bench settings`."""

from __future__ import annotations

from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import BackendName, Device, Json, ModelPath
from sprfast.errors import InputError


def settings(
    model: ModelPath,
    seconds: Annotated[float, typer.Option(help="Time for calls of one image, and as much again for batches.")] = 20.0,
    backend: BackendName = "auto",
    device: Device = None,
    json_: Json = False,
) -> None:
    """Passes, times and images/s of every setting in the model file, all in turns by one
    backend.
    """
    from sprfast.bench.core import named_settings
    from sprfast.formats import model as model_file
    from sprfast.system import devices

    if not 0 < seconds < 86400:
        raise InputError(f"--seconds {seconds}: expected a positive number of at most a day")
    loaded = model_file.load(model)
    if not loaded.scoring_modes:
        raise InputError(f"{model}: holds no setting beside the published one; `sprfast calibrate --setting` adds one")
    document = named_settings.measure(loaded, backend, devices.resolve(device), seconds)
    console.emit(document, json_, lambda: named_settings.table(document))
