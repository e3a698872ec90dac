"""Folders of images: the MVTec AD, MPDD and BTAD layouts, a folder of good and one of bad images,
and a plain folder of good images.

A category folder holds

    train/good   test/good   test/KIND   ground_truth/KIND      or
    good         bad                     ground_truth/bad

and the mask of test/KIND/NAME.png is ground_truth/KIND/NAME_mask.png or ground_truth/KIND/NAME.png,
in any image format. `GOOD` and `BAD` below are other names of a good and a bad folder, in any case.
Folders are read by name order, and links are followed. Folders in them are read where the caller
asks for it; else those that hold images are named in a warning, as are files without an image
suffix. Names that begin with a dot are passed over.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sprfast.config import Preprocessing
from sprfast.data import folders
from sprfast.data.images import MASK_PREPROCESSING, display_name, image_size
from sprfast.errors import InputError
from sprfast.system.reading import open_regular

GOOD = frozenset({"good", "ok", "normal"})
BAD = frozenset(
    {"bad", "ng", "nok", "ko", "broken", "defect", "defects", "defective", "fault", "faults", "faulty"}
    | {"anomaly", "anomalies", "anomalous", "abnormal", "reject", "rejects", "rejected"}
)
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
    """The images of one product; `test` is empty for a plain folder of good images.

    Of a folder of good and one of bad images `test` has the bad ones only: which good ones a model
    was not trained on, its file knows (`evaluation.unseen`).
    """

    name: str
    train: tuple[Path, ...]
    test: tuple[Sample, ...]


def list_categories(root: str | os.PathLike[str]) -> list[str]:
    """The names, sorted, of the folders in `root` that hold train/good, or else a folder `good`.

    Raises:
        InputError: `root` is not a folder or holds no category.
    """
    names = _category_names(Path(root))
    if not names:
        raise InputError(f"{display_name(root)}: holds no category, a folder with train/good or good in it")
    return names


def load_category(
    root: str | os.PathLike[str],
    name: str | None,
    preprocessing: Preprocessing = _DEFAULT,
    recursive: bool = False,
) -> Category:
    """The images of category `name` in the folder `root`; with None, of `root` itself.

    Files are named in sorted order, defect kinds too. No pixels are looked at: sizes of defective
    images and their masks are compared by their headers, under the policies of `preprocessing`.

    Args:
        recursive: read the folders in folders of images too.

    Raises:
        InputError: the folder is missing or is none of the layouts; `name` leads out of `root`; a
            class is empty; two files of a folder differ only in the suffix; a defective image has
            no mask, two, or one of another size; a training image is also a defective test image.
    """
    top = Path(root)
    folder = top if name is None else _category_folder(top, name)
    folders.entries(folder)  # which says what is wrong with it
    title = _category_name(folder) if name is None else name
    if good := _good_folders(folder / "train"):
        test = _test_samples(folder, preprocessing, recursive)
        category = Category(title, _training_images(good, recursive), test)
    elif good := _good_folders(folder):
        category = _good_and_bad(title, folder, good, preprocessing, recursive)
    elif plain := folders.images(folder, recursive):
        folders.tell_left_out(folder, recursive)
        category = Category(title, tuple(plain.values()), ())
    elif names := _category_names(folder):
        raise InputError(f"{display_name(folder)}: name one of its categories: {folders.listing(names)}")
    else:
        raise InputError(f"{display_name(folder)}: no train/good, no good, and no images{folders.advice(folder)}")
    _refuse_anomaly_in_train(category)
    return category


def load_folders(good: str | os.PathLike[str], bad: str | os.PathLike[str] | None, recursive: bool = False) -> Category:
    """The good images of one folder, and the bad ones of another; no masks.

    Raises:
        InputError: a folder cannot be read or holds no image; a good image is also a bad one.
    """
    name = _category_name(Path(good))
    test = _samples(Path(bad), None, _DEFAULT, recursive) if bad is not None else []
    category = Category(name, tuple(_class_images(Path(good), recursive).values()), tuple(test))
    _refuse_anomaly_in_train(category)
    return category


def image_files(paths: Iterable[Path], recursive: bool = False) -> list[Path]:
    """`paths` with every folder replaced by the images in it, in name order, with `recursive` also
    by those in its folders.

    Raises:
        InputError: a folder cannot be read or holds no image.
    """
    files: list[Path] = []
    for path in paths:
        if not os.path.isdir(path):  # Path.is_dir would raise for a name that is too long
            files.append(path)
            continue
        found = [entry for each in folders.walk(path, recursive) for entry in folders.image_entries(each)]
        folders.require_images(path, found, recursive)
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


def _category_names(root: Path) -> list[str]:
    names = [entry.name for entry in folders.entries(root) if _good_folders(entry / "train")]
    if names or _good_folders(root / "train"):
        return names
    return [entry.name for entry in folders.entries(root) if _good_folders(entry)]


def _category_folder(root: Path, name: str) -> Path:
    """The folder may be a link to anywhere: its owner has put it there. The name leads nowhere."""
    inside = os.path.normpath(name)
    if not name or "\0" in name or os.path.isabs(name) or inside.split(os.sep)[0] in (os.curdir, os.pardir):
        raise InputError(f"{name!r}: a category is a folder in {display_name(root)}, this leads out of it")
    folder = root / name
    if not os.path.isdir(folder):
        known = folders.listing(_category_names(root))
        raise InputError(f"{display_name(name)}: no such category in {display_name(root)}, which holds {known}")
    return folder


def _category_name(folder: Path) -> str:
    """The folder's name; of a folder `good`, or `train/good`, that of the folder that it is in."""
    real = Path(os.path.realpath(folder))
    for each in (real, *real.parents):
        if each.name.casefold() not in GOOD | {"train", ""}:
            return each.name
    return real.name or "model"


def _good_folders(parent: Path) -> list[Path]:
    entries = folders.entries(parent) if os.path.isdir(parent) else []
    return [entry for entry in entries if _is_good(entry.name) and os.path.isdir(entry)]


def _is_good(name: str) -> bool:
    return name.casefold() in GOOD


def bad_folders(folder: Path) -> list[Path]:
    """The folders of bad images beside a folder `good`; none in the other layouts.

    Raises:
        InputError: the folder cannot be read.
    """
    if not _good_folders(folder) or _good_folders(folder / "train"):
        return []
    return [each for each in folders.entries(folder) if each.name.casefold() in BAD and os.path.isdir(each)]


def _good_and_bad(name: str, folder: Path, good: list[Path], preprocessing: Preprocessing, recursive: bool) -> Category:
    """The category of a folder that holds a folder `good`, and others beside it."""
    if folders.images(folder):
        where = f"{good[0].name} and images beside it"
        raise InputError(f"{display_name(folder)}: holds {where}; move them there, or name the folder of good images")
    bad = bad_folders(folder)
    others = [each for each in folders.entries(folder) if os.path.isdir(each) and each not in (*good, *bad)]
    others = [each for each in others if each.name != "ground_truth" and folders.holds_images(each)]
    if others:
        known = "a folder of bad images is called bad, ng, defect, ... or given with --bad"
        folders.warn(f"{display_name(folder)}: left out: {folders.listing([each.name for each in others])}; {known}")
    samples = [_samples(each, folder / "ground_truth", preprocessing, recursive) for each in bad]
    return Category(name, _training_images(good, recursive), tuple(itertools.chain.from_iterable(samples)))


def _class_images(folder: Path, recursive: bool) -> dict[str, Path]:
    images = folders.images(folder, recursive)
    folders.require_images(folder, images, recursive)
    return images


def _training_images(good: list[Path], recursive: bool) -> tuple[Path, ...]:
    if len(good) > 1:
        raise InputError(f"{display_name(good[0].parent)}: holds both {good[0].name} and {good[1].name}; keep one")
    return tuple(_class_images(good[0], recursive).values())


def _test_samples(folder: Path, preprocessing: Preprocessing, recursive: bool) -> tuple[Sample, ...]:
    samples: list[Sample] = []
    test = folder / "test"
    for kind in folders.entries(test) if os.path.isdir(test) else []:
        if not os.path.isdir(kind):
            continue
        if _is_good(kind.name):
            samples += [Sample(path, 0, "good", None) for path in _class_images(kind, recursive).values()]
        else:
            samples += _samples(kind, folder / "ground_truth", preprocessing, recursive)
    return tuple(samples)


def _samples(folder: Path, truth: Path | None, preprocessing: Preprocessing, recursive: bool) -> list[Sample]:
    """The defective images of a folder, with their masks in the folder of its name in `truth`,
    where that exists.

    Their kind is the folder's name; in the folders of a folder `bad` it is that of theirs.
    """

    def kind(path: Path) -> str:
        inner = path.relative_to(folder).parts[0]
        return inner if folder.name.casefold() in BAD and inner != path.name else folder.name

    images = _class_images(folder, recursive)
    if truth is None or not os.path.isdir(truth):
        return [Sample(path, 1, kind(path), None) for path in images.values()]
    masks = folders.images(truth / folder.name, recursive) if os.path.isdir(truth / folder.name) else {}
    return [Sample(path, 1, kind(path), _mask(path, stem, masks, preprocessing)) for stem, path in images.items()]


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
