"""What a folder of images holds: the images, and what is left out of them."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

from sprfast.data.images import display_name
from sprfast.errors import InputError, SprfastWarning

# in any case
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".heic", ".heif", ".pgm", ".ppm", ".pnm"}
)
_DEEPER = "folders of images in it, which --recursive reads where a command has it"


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in name order; names that begin with a dot are passed over.

    Raises:
        InputError: it cannot be read.
    """
    try:
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        return sorted(visible, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{display_name(folder)}: the folder cannot be read ({reason})") from error


def walk(folder: Path, recursive: bool = True) -> Iterator[Path]:
    """The folder and, where `recursive`, those in it at any depth, behind links too, each one once.

    Raises:
        InputError: one of them cannot be read.
    """
    seen: set[str] = set()

    def below(at: Path) -> Iterator[Path]:
        if (real := os.path.realpath(at)) in seen:
            return
        seen.add(real)
        yield at
        for entry in entries(at) if recursive else ():
            if os.path.isdir(entry):
                yield from below(entry)

    return below(folder)


def image_entries(folder: Path) -> list[Path]:
    """Files with an image suffix in name order, broken links and special files included.

    Raises:
        InputError: the folder cannot be read.
    """
    found = [entry for entry in entries(folder) if entry.suffix.lower() in IMAGE_SUFFIXES]
    return [entry for entry in found if not os.path.isdir(entry)]


def images(folder: Path, recursive: bool = False) -> dict[str, Path]:
    """Every image of a folder by its path in it without the suffix, in name order.

    Paths are compared in Unicode's composed form, since copying between systems changes the form.

    Raises:
        InputError: the folder cannot be read, or two images differ only in the suffix.
    """
    found: dict[str, Path] = {}
    for each in walk(folder, recursive):
        for entry in image_entries(each):
            stem = str(entry.relative_to(folder).with_suffix(""))
            other = found.setdefault(unicodedata.normalize("NFC", stem), entry)
            if other is not entry:
                same = f"has the same name as {display_name(entry.name)} but for its suffix"
                raise InputError(f"{display_name(other)}: {same}; keep one")
    return found


def holds_images(folder: Path) -> bool:
    """Whether there is an image in the folder, at any depth.

    Raises:
        InputError: a folder cannot be read.
    """
    return any(image_entries(each) for each in walk(folder))


def require_images(folder: Path, found: Collection[Path | str], recursive: bool) -> None:
    """Name what was left out of a folder in which these images were found.

    Raises:
        InputError: there are none.
    """
    if not found:
        suffixes, more = ", ".join(sorted(IMAGE_SUFFIXES)), "" if recursive else advice(folder)
        raise InputError(f"{display_name(folder)}: holds no images ({suffixes}){more}")
    tell_left_out(folder, recursive)


def tell_left_out(folder: Path, recursive: bool) -> None:
    """Warn of files that are no images by their names, and of folders of images that are not read:
    a part among them would not be looked at.
    """
    for each in walk(folder, recursive):
        others = [entry for entry in entries(each) if entry.suffix.lower() not in IMAGE_SUFFIXES]
        others = [entry for entry in others if not os.path.isdir(entry)]
        if others:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            warn(f"{display_name(each)}: left out, without a suffix of an image ({suffixes}): {_first(others)}")
    if not recursive and (inner := _inner(folder)):
        warn(f"{display_name(folder)}: left out, {_DEEPER}: {_first(inner)}")


def advice(folder: Path) -> str:
    """What to do about a folder in which no image was found."""
    return f"; {_DEEPER}" if _inner(folder) else ""


def listing(names: list[str]) -> str:
    """Names in a message."""
    return ", ".join(display_name(name) for name in names) or "none"


def warn(message: str) -> None:
    """Say what the caller of the library should know, and go on."""
    warnings.warn(message, SprfastWarning, stacklevel=3)


def _first(paths: list[Path]) -> str:
    return listing([each.name for each in paths[:5]]) + (f" and {len(paths) - 5} more" if paths[5:] else "")


def _inner(folder: Path) -> list[Path]:
    """Folders in this one that hold images; a link back to where it leads is none."""
    real = Path(os.path.realpath(folder))
    inner = [entry for entry in entries(folder) if os.path.isdir(entry)]
    return [each for each in inner if not real.is_relative_to(os.path.realpath(each)) and holds_images(each)]
