"""Folders of images: the MVTec AD, MPDD and BTAD layouts, and a plain folder of good images.

A category folder holds

    train/good (or ok)   test/good (or ok)   test/KIND   ground_truth/KIND

and the mask of test/KIND/NAME.png is ground_truth/KIND/NAME_mask.png or ground_truth/KIND/NAME.png,
in any image format. Folders are read by name order and without descending further; names that begin
with a dot are passed over. Files without an image suffix are left out, with a warning that names
them. `good` and `ok` may be written in any case.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sprfast.config import Preprocessing
from sprfast.data.images import MASK_PREPROCESSING, display_name, image_size
from sprfast.errors import InputError, SprfastWarning
from sprfast.system.files import confined
from sprfast.system.reading import open_regular

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})  # in any case

_GOOD = ("good", "ok")
_DEFAULT = Preprocessing()


@dataclass(frozen=True)
class Sample:
    """One test image."""

    path: Path
    label: int  # 1 = anomalous
    kind: str  # "good", or the name of the defect folder
    mask: Path | None  # None for good images, and where the category has no ground_truth folder at all


@dataclass(frozen=True)
class Category:
    """The images of one product; `test` is empty for a plain folder of good images."""

    name: str
    train: tuple[Path, ...]
    test: tuple[Sample, ...]


def list_categories(root: str | os.PathLike[str]) -> list[str]:
    """The names, sorted, of the folders in `root` that hold train/good or train/ok.

    Raises:
        InputError: `root` is not a folder or holds no category.
    """
    names = _category_names(Path(root))
    if not names:
        raise InputError(f"{display_name(root)}: holds no category, a folder with train/good or train/ok in it")
    return names


def load_category(root: str | os.PathLike[str], name: str | None, preprocessing: Preprocessing = _DEFAULT) -> Category:
    """The images of category `name` in the folder `root`; with None, of `root` itself.

    Files are named in sorted order, defect kinds too. No pixels are looked at: sizes of defective
    images and their masks are compared by their headers, under the policies of `preprocessing`.

    Raises:
        InputError: the folder is missing, is none of the layouts or leads out of `root`; a class is
            empty; two files of a folder differ only in the suffix; a defective image has no mask,
            two, or one of another size; a training image is also a defective test image.
    """
    top = Path(root)
    folder = top if name is None else _category_folder(top, name)
    good = _good_folders(folder / "train")
    if good:
        category = Category(_category_name(folder, name), _training_images(good), _test_samples(folder, preprocessing))
        _refuse_anomaly_in_train(category)
        return category
    plain = _images(folder)
    if not plain:
        names = _category_names(folder)
        if names:
            raise InputError(f"{display_name(folder)}: name one of its categories: {_listing(names)}")
        raise InputError(f"{display_name(folder)}: no train/good or train/ok, and no images")
    _tell_left_out(folder)
    return Category(_category_name(folder, name), tuple(plain.values()), ())


def image_files(paths: Iterable[Path]) -> list[Path]:
    """`paths` with every folder replaced by the images in it, in name order.

    Raises:
        InputError: a folder cannot be read or holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if not os.path.isdir(path):  # Path.is_dir would raise for a name that is too long
            files.append(path)
            continue
        found = [entry for entry in _entries(path) if entry.suffix.lower() in IMAGE_SUFFIXES]
        _tell_left_out(path)
        if not found:
            raise InputError(f"{display_name(path)}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        files += found
    return files


def fingerprint(paths: Iterable[Path]) -> str:
    """A SHA-256 in hexadecimal over the sorted (file name, SHA-256 of content) of the files.

    Raises:
        InputError: a file cannot be read.
    """
    total = hashlib.sha256()
    for name, content in sorted((os.fsencode(path.name), digest(path)) for path in paths):
        total.update(name + b"\0" + content)
    return total.hexdigest()


def split(paths: Sequence[Path], share: float, seed: int) -> tuple[list[Path], list[Path]]:
    """`paths` without a share of them, rounded, and that share, drawn by the seed; both in the
    order given.

    Raises:
        InputError: nothing would be left on one of the two sides.
    """
    count = round(share * len(paths))
    if share and not 0 < count < len(paths):
        wanted = "expected at least 1 held back and 1 left"
        raise InputError(f"hold_back: {share} of {len(paths)} images are {count}, {wanted}")
    held_back = set(random.Random(seed).sample(range(len(paths)), count))
    chosen = [path for index, path in enumerate(paths) if index in held_back]
    return [path for index, path in enumerate(paths) if index not in held_back], chosen


def _entries(folder: Path) -> list[Path]:
    try:
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        return sorted(visible, key=lambda entry: entry.name)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{display_name(folder)}: the folder cannot be read ({reason})") from error


def _category_names(root: Path) -> list[str]:
    return [entry.name for entry in _entries(root) if _good_folders(entry / "train")]


def _category_folder(root: Path, name: str) -> Path:
    folder = confined(root, name)
    if not os.path.isdir(folder):
        known = _listing(_category_names(root))
        raise InputError(f"{display_name(name)}: no such category in {display_name(root)}, which holds {known}")
    return folder


def _category_name(folder: Path, name: str | None) -> str:
    return Path(os.path.realpath(folder)).name if name is None else name


def _listing(names: list[str]) -> str:
    return ", ".join(display_name(name) for name in names) or "none"


def _good_folders(parent: Path) -> list[Path]:
    entries = _entries(parent) if os.path.isdir(parent) else []
    return [entry for entry in entries if _is_good(entry.name) and os.path.isdir(entry)]


def _is_good(name: str) -> bool:
    return name.casefold() in _GOOD


def _images(folder: Path) -> dict[str, Path]:
    """Every image of a folder by its stem, in name order, broken links and special files included.

    Stems are compared in Unicode's composed form, since copying between systems changes the form.
    """
    images: dict[str, Path] = {}
    for entry in _entries(folder):
        if entry.suffix.lower() not in IMAGE_SUFFIXES or os.path.isdir(entry):
            continue
        other = images.setdefault(unicodedata.normalize("NFC", entry.stem), entry)
        if other is not entry:
            same = f"has the same name as {display_name(entry.name)} but for its suffix"
            raise InputError(f"{display_name(other)}: {same}; keep one")
    return images


def _class_images(folder: Path) -> dict[str, Path]:
    images = _images(folder)
    if not images:
        raise InputError(f"{display_name(folder)}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    _tell_left_out(folder)
    return images


def _tell_left_out(folder: Path) -> None:
    """Warn of files that are no images by their names: a part among them would not be looked at."""
    others = [each for each in _entries(folder) if each.suffix.lower() not in IMAGE_SUFFIXES]
    others = [each for each in others if not os.path.isdir(each)]
    if others:
        names = _listing([each.name for each in others[:5]]) + (f" and {len(others) - 5} more" if others[5:] else "")
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        warnings.warn(
            f"{display_name(folder)}: left out, without a suffix of an image ({suffixes}): {names}",
            SprfastWarning,
            stacklevel=2,
        )


def _training_images(good: list[Path]) -> tuple[Path, ...]:
    if len(good) > 1:
        raise InputError(f"{display_name(good[0].parent)}: holds both {good[0].name} and {good[1].name}; keep one")
    return tuple(_class_images(good[0]).values())


def _test_samples(folder: Path, preprocessing: Preprocessing) -> tuple[Sample, ...]:
    samples: list[Sample] = []
    test, truth = folder / "test", folder / "ground_truth"
    for kind in _entries(test) if os.path.isdir(test) else []:
        if not os.path.isdir(kind):
            continue
        images = _class_images(kind)
        if _is_good(kind.name):
            samples += [Sample(path, 0, "good", None) for path in images.values()]
            continue
        masks = _images(truth / kind.name) if os.path.isdir(truth / kind.name) else {}
        for stem, path in images.items():
            mask = _mask(path, stem, masks, preprocessing) if os.path.isdir(truth) else None
            samples.append(Sample(path, 1, kind.name, mask))
    return tuple(samples)


def _mask(path: Path, stem: str, masks: dict[str, Path], preprocessing: Preprocessing) -> Path:
    found = [masks[name] for name in (f"{stem}_mask", stem) if name in masks]
    if len(found) != 1:
        have = " and ".join(display_name(mask) for mask in found) or "none"
        wanted = "one mask in ground_truth, NAME_mask or NAME with an image suffix"
        raise InputError(f"{display_name(path)}: needs {wanted}; found {have}")
    (height, width), mask = image_size(path, preprocessing), image_size(found[0], MASK_PREPROCESSING)
    if mask != (height, width):
        image = f"its image {display_name(path)} {height}x{width}"
        raise InputError(f"{display_name(found[0])}: is {mask[0]}x{mask[1]} pixels, {image}")
    return found[0]


def _refuse_anomaly_in_train(category: Category) -> None:
    """Only files of equal size are hashed, and each one once."""
    sizes = {_file_size(path) for path in category.train}
    suspects = [sample.path for sample in category.test if sample.label and _file_size(sample.path) in sizes]
    digests = {digest(path): path for path in suspects}
    sizes = {_file_size(path) for path in suspects}
    for path in category.train:
        if _file_size(path) in sizes and (twin := digests.get(digest(path))):
            same = f"the same file as the defective {display_name(twin)}"
            raise InputError(f"{display_name(path)}: a training image, but {same}")


def _file_size(path: Path) -> int:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{display_name(path)}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{display_name(path)}: not a regular file")
    return status.st_size


def digest(path: Path) -> bytes:
    """SHA-256 of a file's content.

    Raises:
        InputError: it cannot be read.
    """
    content = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            while block := stream.read(2**20):
                content.update(block)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{display_name(path)}: cannot be read ({reason})") from error
    return content.digest()
