"""Which images `calibrate` takes: good ones to fit on and to promise on, and bad ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sprfast.cli import console
from sprfast.cli.data_source import DataSource
from sprfast.errors import InputError


def good(folder: Path | None, held_back: bool, recursive: bool, provenance: Mapping[str, Any]) -> list[Path]:
    """The good images of a folder, or those that the training held back, which are there or,
    without a folder, where they were.
    """
    from sprfast.data import datasets
    from sprfast.evaluation import unseen

    if not held_back:
        assert folder is not None  # `Request` checks it
        return datasets.image_files([folder], recursive)
    if folder is None:
        source = DataSource.of_training(provenance)
        if source is None or not source.folder.is_dir():
            where = f"{source.folder}, where they were, is gone" if source else "the model file does not say where"
            raise InputError(f"--held-back: {where}; give the folder that holds them now as GOOD_DIR")
        folder = source.folder
    found, gone = unseen.held_back(provenance, folder)
    if gone:
        console.say(f"sprfast: {gone} of the {len(found) + gone} images held back are not in {folder} any more")
    return found


def bad(folders: Sequence[Path], recursive: bool, good: Sequence[Path]) -> list[Path]:
    """The bad images of some folders, none of which may be a good one."""
    from sprfast.data import datasets

    found = datasets.image_files(folders, recursive)
    known = {datasets.digest(path): path for path in good}
    for path in found:
        if twin := known.get(datasets.digest(path)):
            raise InputError(f"{path}: a bad image, but the same file as the good {twin}")
    return found


def parted(
    good: list[Path], fit: Path | None, recursive: bool, provenance: Mapping[str, Any], force: bool
) -> tuple[list[Path], list[Path]]:
    """Good images to fit on, of the folder `fit` or else every other one, and those to promise on.

    No image may be fitted on and promised on: its score would be lower than a fresh one's.
    """
    from sprfast.data import datasets
    from sprfast.evaluation import calibration

    if fit is None:
        to_fit, rest = calibration.halves(good)
    else:
        to_fit, rest = datasets.image_files([fit], recursive), good
    both = {datasets.digest(path) for path in to_fit} & {datasets.digest(path) for path in rest}
    if both:
        raise InputError(
            f"calibrate: {len(both)} of the images to fit on are among the good images too, which need others"
        )
    if fit is not None:
        require_untrained(provenance, to_fit, force)
    return to_fit, rest


def require_untrained(provenance: Mapping[str, Any], good: Sequence[Path], force: bool) -> None:
    """No image that was trained on may be promised or fitted on: the network knows it, so that its
    errors and its score are lower than a fresh one's.
    """
    from sprfast.data import datasets
    from sprfast.formats import trained_on

    count = sum(trained_on.among(provenance, map(datasets.digest, good)))
    if not count:
        return
    known = f"{count} of the {len(good)} good images were trained on"
    if not force:
        raise InputError(f"calibrate: {known}; give others, or --held-back for those that `train --hold-back` left out")
    console.say(f"sprfast: {known}: more good parts will be rejected than the rate says, it holds for such images only")
