"""Photos as somebody takes them with a phone: numbered names, one in a folder of its own, one as
HEIC and one as JPEG in Display P3.

`python tests/support/photos.py FOLDER CATEGORY` makes them of a category in the MVTec AD layout, in
the folder that docs/getting-started.md begins with.
"""

from __future__ import annotations

import io
import itertools
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import PIL.Image
import PIL.ImageCms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where it runs as a program

from support.pictures import profile

GOOD, BAD = 60, 5  # photos to learn from
FRESH_GOOD, FRESH_BAD = 8, 4  # that come afterwards
P3 = profile("Display P3")


def write(folder: Path, good: Sequence[PIL.Image.Image], bad: Sequence[PIL.Image.Image]) -> None:
    """Make photos/good and photos/bad of the first of these RGB pictures in sRGB, and new-photos of
    some of the others, under names that say what they are.
    """
    number = itertools.count(1)
    for name, pictures in (("photos/good", good[:GOOD]), ("photos/bad", bad[:BAD])):
        _save(folder / name, (f"IMG_{next(number):04}" for _ in pictures), pictures)
    _as_a_phone(folder / "photos" / "good")
    for name, pictures in (("good", good[GOOD:][:FRESH_GOOD]), ("bad", bad[BAD:][:FRESH_BAD])):
        _save(folder / "new-photos", (f"{name}-{index}" for index in range(len(pictures))), pictures)


def _save(folder: Path, stems: Iterable[str], pictures: Iterable[PIL.Image.Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, picture in zip(stems, pictures, strict=False):
        picture.save(folder / f"{stem}.jpg", quality=95)


def _as_a_phone(folder: Path) -> None:
    """Of the photos in a folder the second goes to a folder in it, the third becomes HEIC and the
    fourth stays JPEG, both in Display P3: other numbers for the same colours.
    """
    import pillow_heif

    _, second, third, fourth, *_ = sorted(folder.iterdir())
    (folder / "late shift").mkdir()
    second.rename(folder / "late shift" / second.name)
    heif = pillow_heif.from_pillow(_in_p3(third))
    heif.save(third.with_suffix(".HEIC"), quality=95)
    third.unlink()
    _in_p3(fourth).save(fourth, quality=95, icc_profile=P3)


def _in_p3(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as image:
        srgb, p3 = PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.ImageCmsProfile(io.BytesIO(P3))
        converted = PIL.ImageCms.profileToProfile(image, srgb, p3)
    assert converted is not None  # it is none where the picture is changed in place
    converted.info["icc_profile"] = P3
    return converted


def _of_category(category: Path) -> tuple[list[PIL.Image.Image], list[PIL.Image.Image]]:
    """Good and bad pictures of a data set, in the order of a shuffle that is always the same."""
    good = sorted(category.glob("train/good/*")) + sorted(category.glob("test/good/*"))
    bad = [path for path in sorted(category.glob("test/*/*")) if path.parent.name != "good"]
    for paths in (good, bad):
        random.Random(0).shuffle(paths)
    return [PIL.Image.open(path).convert("RGB") for path in good], [PIL.Image.open(path).convert("RGB") for path in bad]


if __name__ == "__main__":
    write(Path(sys.argv[1]), *_of_category(Path(sys.argv[2])))
