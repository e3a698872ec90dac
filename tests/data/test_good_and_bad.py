"""Folders of good and of bad images, whatever they are called, and folders in them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from sprfast.data.datasets import (
    BAD,
    GOOD,
    Sample,
    bad_folders,
    image_files,
    list_categories,
    load_category,
    load_folders,
)
from sprfast.errors import InputError, SprfastWarning


def write(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Good images, one of them in a folder of its own, and bad ones."""
    for seed, name in enumerate(("OK/b.png", "OK/a.png", "OK/night/a.png", "NG/1.png", "NG/dent/1.png")):
        write(tmp_path / "photos" / name, seed)
    return tmp_path / "photos"


@pytest.mark.parametrize("good", sorted(GOOD))
@pytest.mark.parametrize("bad", ["bad", "NG", "Defective", "anomaly"])
def test_folders_are_good_or_bad_by_their_names(tmp_path: Path, good: str, bad: str) -> None:
    write(tmp_path / good.title() / "0.png", 0)
    write(tmp_path / bad / "1.png", 1)
    category = load_category(tmp_path, None)
    assert category.train == (tmp_path / good.title() / "0.png",)
    assert category.test == (Sample(tmp_path / bad / "1.png", 1, bad, None),)
    assert bad_folders(tmp_path) == [tmp_path / bad]
    assert bad.casefold() in BAD
    assert category.name == tmp_path.name


def test_folders_in_folders_are_read_with_recursive_and_named_without(photos: Path) -> None:
    with pytest.warns(SprfastWarning) as told:
        category = load_category(photos, None)
    assert sorted(str(each.message).rpartition(": ")[2] for each in told) == ["dent", "night"]
    assert [path.name for path in category.train] == ["a.png", "b.png"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        category = load_category(photos, None, recursive=True)
        assert load_folders(photos / "OK", photos / "NG", recursive=True) == category
    assert category.train == (photos / "OK/a.png", photos / "OK/b.png", photos / "OK/night/a.png")
    assert [(sample.path.parent.name, sample.kind, sample.label) for sample in category.test] == [
        ("NG", "NG", 1),
        ("dent", "dent", 1),
    ]
    assert image_files([photos / "OK"], recursive=True) == list(category.train)


def test_masks_are_those_of_the_bad_folder(photos: Path) -> None:
    for name in ("1_mask.png", "dent/1.png"):
        write(photos / "ground_truth/NG" / name, 9)
    category = load_category(photos, None, recursive=True)
    assert [sample.mask for sample in category.test] == [
        photos / "ground_truth/NG" / name for name in ("1_mask.png", "dent/1.png")
    ]


def test_categories_may_be_folders_of_good_and_bad_images_or_links(photos: Path) -> None:
    root = photos.parent / "all"
    root.mkdir()
    (root / "bolt").symlink_to(photos)
    assert list_categories(root) == ["bolt"]
    assert load_category(root, "bolt", recursive=True).train[0] == root / "bolt/OK/a.png"


def test_a_folder_of_good_images_is_called_as_the_folder_that_it_is_in(tmp_path: Path) -> None:
    for name in ("screw/train/good", "screw/good", "screw"):
        write(tmp_path / name / "0.png", 0)
        assert load_category(tmp_path / name, None).name == "screw"
        (tmp_path / name / "0.png").unlink()
        if name != "screw":
            (tmp_path / name).rmdir()


def test_what_is_neither_good_nor_bad_is_named(photos: Path) -> None:
    write(photos / "maybe" / "0.png", 7)
    (photos / "empty").mkdir()
    with pytest.warns(SprfastWarning, match=r"photos: left out: maybe; a folder of bad images is called bad, ng"):
        load_category(photos, None, recursive=True)
    write(photos / "0.png", 8)
    with pytest.raises(InputError, match="photos: holds OK and images beside it"):
        load_category(photos, None)


def test_faults_of_good_and_bad_images_are_named(photos: Path) -> None:
    with pytest.raises(InputError, match="none: the folder cannot be read"):
        load_folders(photos / "OK", photos / "none")
    with pytest.raises(InputError, match=r"photos: holds no images .*; folders of images in it, which --rec"):
        load_folders(photos, photos / "NG")
    (photos / "OK/c.png").write_bytes((photos / "NG/1.png").read_bytes())
    with pytest.raises(InputError, match=r"c\.png: a training image, but the same file as the defective .*NG/1\.png"):
        load_category(photos, None, recursive=True)


def test_a_loop_of_links_is_read_once(photos: Path) -> None:
    (photos / "OK/again").symlink_to(photos / "OK")
    assert len(load_category(photos, None, recursive=True).train) == 3
    (photos / "OK/night/up").symlink_to(photos)
    with pytest.raises(InputError, match=r"night/up/NG/1\.png: a training image, but the same file as the defective"):
        load_category(photos, None, recursive=True)
