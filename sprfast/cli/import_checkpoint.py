"""The command `import`: a model file from a checkpoint of the published code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console, options
from sprfast.cli.info import describe
from sprfast.cli.options import Alpha, BitDepth, Frames, Json, Levels, Orientation, Profiles, Size, SizePolicy
from sprfast.system import files


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="AUTHORS.pth", help="A checkpoint of the published code.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.")],
    size: Size = 192,
    size_policy: SizePolicy = "fit",
    bit_depth: BitDepth = 16,
    alpha: Alpha = "refuse",
    orientation: Orientation = "exif",
    frames: Frames = "refuse",
    profiles: Profiles = "convert",
    level: Levels = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is there.")] = False,
    json_: Json = False,
) -> None:
    """Turn a published checkpoint into a model file; nothing in it is executed."""
    from sprfast.formats import model as model_file

    if not force:
        files.require_free(output)
    files.refuse_source(output, [checkpoint])
    preprocessing = options.preprocessing(size, size_policy, bit_depth, alpha, orientation, frames, profiles)
    model = model_file.import_checkpoint(checkpoint, preprocessing=preprocessing, schedule=options.schedule(level))
    model_file.save(output, model)
    summary = describe(model, output)
    console.emit(summary, json_)
