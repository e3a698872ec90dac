"""Where labelled images are, as `train`, `evaluate` and `study` are told it, and as a model file
keeps it for `calibrate --held-back`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.config import Preprocessing, _Config
from sprfast.errors import InputError

if TYPE_CHECKING:
    from sprfast.data.datasets import Category

FIELD = "data"  # of a model's provenance

Good = Annotated[Path | None, typer.Option(help="Folder of good images, in place of DATA.")]
Bad = Annotated[Path | None, typer.Option(help="Folder of bad images, beside --good.")]
Recursive = Annotated[bool, typer.Option("--recursive", help="Read the folders in folders of images too.")]


@dataclasses.dataclass(frozen=True)
class DataSource(_Config):
    """A data set or a category of it, or a folder of good images and one of bad ones.

    Raises:
        InputError: both are given, or none.
    """

    data: str = ""
    category: str = ""
    good: str = ""
    bad: str = ""
    recursive: bool = False

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.good):
            raise InputError("give DATA, or --good DIR with --bad DIR")
        if self.bad and not self.good:
            raise InputError("--bad: goes with --good DIR; in DATA the bad images are in a folder of their own")
        if self.good and self.category:
            raise InputError("--category: is of DATA, --good and --bad are folders of images")

    @classmethod
    def of_options(
        cls, data: Path | None, category: str | None, good: Path | None, bad: Path | None, recursive: bool
    ) -> DataSource:
        """What the options of a command say."""
        folder, of_good, of_bad = (str(each) if each else "" for each in (data, good, bad))
        return cls(folder, category or "", of_good, of_bad, recursive)

    @classmethod
    def of_training(cls, provenance: Mapping[str, Any]) -> DataSource | None:
        """Where the images of a model's training were; None where its file does not say.

        Raises:
            InputError: the field is damaged.
        """
        document = provenance.get(FIELD)
        return None if document is None else cls.from_json(document)

    def of(self, category: str | None) -> DataSource:
        """The same data set with another category."""
        return dataclasses.replace(self, category=category or "")

    def load(self, preprocessing: Preprocessing) -> Category:
        """The images.

        Raises:
            InputError: see `datasets.load_category` and `datasets.load_folders`.
        """
        from sprfast.data import datasets

        if self.good:
            return datasets.load_folders(self.good, self.bad or None, self.recursive)
        return datasets.load_category(self.data, self.category or None, preprocessing, self.recursive)

    @property
    def folder(self) -> Path:
        """The folder that all good images are in, at some depth."""
        return Path(self.good or os.path.join(self.data, self.category))

    def absolute(self) -> DataSource:
        """The same from any working directory."""
        paths = {name: os.path.abspath(path) for name in ("data", "good", "bad") if (path := getattr(self, name))}
        return dataclasses.replace(self, **paths)

    def arguments(self) -> list[str]:
        """What to write behind the name of a command."""
        named = [(f"--{name}", getattr(self, name)) for name in ("category", "good", "bad")]
        written = [self.data] if self.data else []
        written += [part for option, value in named if value for part in (option, value)]
        return [*written, *(["--recursive"] if self.recursive else [])]


def to_calibrate_on(provenance: Mapping[str, Any]) -> list[str]:
    """What to write behind `calibrate MODEL`."""
    return ["--held-back"] if provenance.get("held_back") else ["OTHER_GOOD_IMAGES"]


def another_category(provenance: Mapping[str, Any], category: str) -> str | None:
    """What to say where a model scores images of another category than it was trained on."""
    from sprfast.data.images import display_name

    known = provenance.get("category")
    if not isinstance(known, str) or not known or known.casefold() == category.casefold():
        return None
    return f"the model was trained on {display_name(known)}, and {display_name(category)} is scored"
