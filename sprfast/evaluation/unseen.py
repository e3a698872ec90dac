"""Images that a model was not trained on, known by their content."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sprfast.data import datasets, folders
from sprfast.data.datasets import Category, Sample
from sprfast.data.images import display_name
from sprfast.errors import InputError
from sprfast.formats import trained_on


def held_back(provenance: Mapping[str, Any], folder: Path) -> tuple[list[Path], int]:
    """The images that a training held back, each once, found in a folder at any depth; and how many
    of them are not there.

    Args:
        provenance: of the model.
        folder: where they are; names do not matter.

    Raises:
        InputError: the model file names none, the folder cannot be read, or none of them is there.
    """
    number = trained_on.count(provenance, trained_on.HELD_BACK)
    if not number:
        raise InputError(
            "--held-back: the model file has no images held back; train with --hold-back 0.2, or give "
            "good images that were not trained on"
        )
    paths = [path for each in folders.walk(folder) for path in folders.image_entries(each)]
    by_digest: dict[bytes, Path] = {}
    for path in paths:
        by_digest.setdefault(datasets.digest(path), path)
    there = trained_on.among(provenance, by_digest, trained_on.HELD_BACK)
    found = [path for path, known in zip(by_digest.values(), there, strict=True) if known]
    if not found:
        where = f"none of the {number} images held back is in {display_name(folder)}"
        raise InputError(f"--held-back: {where}; give the folder that they are in now")
    return found, number - len(found)


def good(category: Category, *provenances: Mapping[str, Any]) -> list[Path]:
    """The good images of a category's training part on which none of the models was trained.

    Raises:
        InputError: an image cannot be read.
    """
    digests = [datasets.digest(path) for path in category.train]
    seen = [trained_on.among(provenance, digests) for provenance in provenances]
    return [path for path, *known in zip(category.train, *seen, strict=True) if not any(known)]


def with_good(category: Category, paths: Sequence[Path]) -> Category:
    """The category with these good images to test on."""
    return dataclasses.replace(category, test=(*(Sample(path, 0, "good", None) for path in paths), *category.test))


def lacks_good(category: Category) -> bool:
    """Whether there are bad images to test on, and no good ones."""
    return bool(category.test) and all(sample.label for sample in category.test)
