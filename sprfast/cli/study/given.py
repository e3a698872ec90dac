"""What the commands of `study` are given: labelled images, and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprfast.cli import console
from sprfast.cli.data_source import DataSource, another_category, to_calibrate_on
from sprfast.errors import InputError

if TYPE_CHECKING:
    from sprfast.data.datasets import Category


def labelled(
    paths: Sequence[Path], category: str | None, good: Path | None, bad: Path | None, recursive: bool
) -> tuple[DataSource, Sequence[Path]]:
    """Where the images are, and the model files: of `paths` the first is the data set, unless the
    folders of good and bad images are given.

    Raises:
        InputError: something is missing.
    """
    if good or bad:
        if not (good and bad):
            raise InputError("study: --good and --bad go together; images to fit on are given with --fit")
        return DataSource.of_options(None, category, good, bad, recursive), paths
    if len(paths) < 2:
        raise InputError("study: give DATA and at least one MODEL, or MODEL... with --good DIR and --bad DIR")
    return DataSource.of_options(paths[0], category, None, None, recursive), paths[1:]


def tell_of_others(given: Category, provenances: Sequence[Mapping[str, Any]]) -> None:
    """Say where a model was trained on another category."""
    for warning in sorted({found for each in provenances if (found := another_category(each, given.name))}):
        console.say(f"sprfast: {warning}")


def say_next(models: Sequence[Path], provenances: Sequence[Mapping[str, Any]], *options: str) -> None:
    """Calibrate the model that is chosen; with these options too."""
    chosen = str(models[0]) if len(models) == 1 else "MODEL"
    console.say_next("calibrate", chosen, *to_calibrate_on(provenances[0]), *options)
