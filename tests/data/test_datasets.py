"""Folder layouts, and the faults of a data set, each of which is named before training."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from sprfast.data import decoding
from sprfast.data.datasets import Sample, digest, fingerprint, image_files, list_categories, load_category
from sprfast.errors import InputError, SprfastWarning


def write(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One category "nut" in the MVTec AD layout."""
    for seed, name in enumerate(
        (
            "train/good/b.png",
            "train/good/a.png",
            "test/good/a.png",
            "test/scratch/a.png",
            "test/hole/c.PNG",
            "test/hole/a.png",
        )
    ):
        write(tmp_path / "nut" / name, seed)
    for name in ("scratch/a_mask.png", "hole/c_mask.png", "hole/a_mask.png"):
        write(tmp_path / "nut/ground_truth" / name, 99)
    return tmp_path


def refuses(root: Path, match: str, name: str | None = "nut") -> None:
    with pytest.raises(InputError, match=match):
        load_category(root, name)


def test_mvtec_layout_in_name_order(root: Path) -> None:
    (root / "nut/train/good/Thumbs.db").write_bytes(b"x")
    (root / "nut/train/good/._a.png").write_bytes(b"x")
    (root / "nut/readme.txt").write_bytes(b"x")
    with pytest.warns(SprfastWarning, match=r"left out.*: Thumbs\.db"):
        category = load_category(root, "nut")
    nut = root / "nut"
    assert category.name == "nut"
    assert category.train == (nut / "train/good/a.png", nut / "train/good/b.png")
    assert category.test == (
        Sample(nut / "test/good/a.png", 0, "good", None),
        Sample(nut / "test/hole/a.png", 1, "hole", nut / "ground_truth/hole/a_mask.png"),
        Sample(nut / "test/hole/c.PNG", 1, "hole", nut / "ground_truth/hole/c_mask.png"),
        Sample(nut / "test/scratch/a.png", 1, "scratch", nut / "ground_truth/scratch/a_mask.png"),
    )
    (root / "nut/train/good/Thumbs.db").unlink()
    assert load_category(nut, None) == category


def test_btad_layout(tmp_path: Path) -> None:
    for seed, name in enumerate(("train/ok/0.bmp", "test/ok/1.bmp", "test/ko/2.bmp")):
        write(tmp_path / "01" / name, seed)
    mask = write(tmp_path / "01/ground_truth/ko/2.png", 9)
    category = load_category(tmp_path, "01")
    assert [path.name for path in category.train] == ["0.bmp"]
    assert [(sample.label, sample.kind, sample.mask) for sample in category.test] == [
        (1, "ko", mask),
        (0, "good", None),
    ]


def test_plain_folder_of_good_images(tmp_path: Path) -> None:
    paths = tuple(write(tmp_path / "parts" / name, 0) for name in ("a.png", "b.JPG", "c.tiff"))
    for category in (load_category(tmp_path / "parts", None), load_category(tmp_path, "parts")):
        assert (category.name, category.train, category.test) == ("parts", paths, ())


def test_root_of_several_categories_must_be_named(root: Path) -> None:
    write(root / "bolt/train/good/0.png", 5)
    assert list_categories(root) == ["bolt", "nut"]
    refuses(root, "name one of its categories: bolt, nut", None)
    refuses(root, "screw: no such category in .*, which holds bolt, nut", "screw")


def test_folder_without_images_or_missing_is_an_input_error(tmp_path: Path) -> None:
    refuses(tmp_path, "no images", None)
    refuses(tmp_path / "none", "No such file", None)
    refuses(tmp_path / "a\0b", "cannot be read", None)
    with pytest.raises(InputError, match="holds no category"):
        list_categories(tmp_path)


def test_no_anomalies_no_test_and_no_ground_truth_are_allowed(root: Path) -> None:
    shutil.rmtree(root / "nut/ground_truth")
    assert [sample.mask for sample in load_category(root, "nut").test] == [None] * 4
    for kind in ("hole", "scratch"):
        shutil.rmtree(root / "nut/test" / kind)
    assert [sample.label for sample in load_category(root, "nut").test] == [0]
    shutil.rmtree(root / "nut/test")
    assert load_category(root, "nut").test == ()


@pytest.mark.parametrize("folder", ["train/good", "test/good", "test/hole"])
def test_empty_class_is_an_input_error(root: Path, folder: str) -> None:
    shutil.rmtree(root / "nut" / folder)
    (root / "nut" / folder).mkdir()
    refuses(root, f"{folder}: holds no images")


def test_both_good_and_ok_is_an_input_error(root: Path) -> None:
    write(root / "nut/train/ok/0.png", 0)
    refuses(root, "holds both good and ok")


def test_missing_mask_is_an_input_error(root: Path) -> None:
    (root / "nut/ground_truth/hole/c_mask.png").unlink()
    refuses(root, r"test/hole/c\.PNG: needs one mask .* found none")
    shutil.rmtree(root / "nut/ground_truth/hole")
    refuses(root, r"test/hole/a\.png: needs one mask .* found none")


def test_two_masks_of_one_image_are_an_input_error(root: Path) -> None:
    write(root / "nut/ground_truth/hole/a.png", 0)
    refuses(root, r"a_mask\.png and .*hole/a\.png")


@pytest.mark.parametrize("size", [(8, 9), (16, 16)])
def test_mask_of_another_size_is_an_input_error(root: Path, size: tuple[int, int]) -> None:
    write(root / "nut/ground_truth/hole/c_mask.png", 0, size)
    refuses(root, rf"c_mask\.png: is {size[0]}x{size[1]} pixels, its image .*c\.PNG 8x8")


def test_no_pixels_are_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_image_planes", None)
    assert len(load_category(root, "nut").test) == 4


def test_truncated_mask_is_an_input_error(root: Path) -> None:
    mask = root / "nut/ground_truth/hole/c_mask.png"
    mask.write_bytes(mask.read_bytes()[:-40])
    refuses(root, r"c_mask\.png: cannot be decoded")


def test_duplicate_stem_in_a_folder_is_an_input_error(root: Path) -> None:
    write(root / "nut/test/hole/a.bmp", 0)
    refuses(root, r"hole/a\.bmp: has the same name as a\.png but for its suffix")


def test_anomaly_in_train_is_an_input_error(root: Path) -> None:
    shutil.copy(root / "nut/test/hole/a.png", root / "nut/train/good/z.png")
    refuses(root, r"train/good/z\.png: a training image, but the same file as the defective .*test/hole/a\.png")


def test_same_size_but_other_content_is_not_an_anomaly_in_train(tmp_path: Path) -> None:
    write(tmp_path / "train/good/0.bmp", 0)
    write(tmp_path / "test/bad/0.bmp", 1)
    assert len(load_category(tmp_path, None).test) == 1


def test_symlink_loops_do_not_hang(root: Path) -> None:
    (root / "nut/train/good/loop").symlink_to(root / "nut/train")
    (root / "nut/test/self").symlink_to("self")
    (root / "again").symlink_to(root)
    assert len(load_category(root, "nut").train) == 2
    assert list_categories(root) == ["nut"]
    (root / "nut/train/good/c.png").symlink_to("c.png")
    refuses(root, r"c\.png: cannot be read")


def test_named_pipe_does_not_hang(root: Path) -> None:
    os.mkfifo(root / "nut/train/good/c.png")
    refuses(root, r"c\.png: not a regular file")
    with pytest.raises(InputError, match="not a regular file"):
        fingerprint([root / "nut/train/good/c.png"])


def test_category_that_leads_out_of_the_root_is_an_input_error(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside / "train/good/0.png", 0)
    for name in ("..", "../" + root.name, f"../{outside.name}", str(outside), "/", "", ".", "nut\0", "nut/../.."):
        refuses(root, "leads out of", name)
    (root / "link").symlink_to(outside)  # where its owner has put it
    assert list_categories(root) == ["link", "nut"]
    assert load_category(root, "link").train == (root / "link/train/good/0.png",)


def test_fingerprint_depends_on_names_and_content_only(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    paths = load_category(root, "nut").train
    copy = tmp_path_factory.mktemp("copy")
    copies = [Path(shutil.copy(path, copy)) for path in reversed(paths)]
    assert len(fingerprint(paths)) == 64
    assert fingerprint(copies) == fingerprint(paths)
    assert fingerprint(copies[:1]) != fingerprint(paths)
    copies[0].write_bytes(copies[0].read_bytes() + b"\0")
    assert fingerprint(copies) != fingerprint(paths)
    with pytest.raises(InputError, match=r"none\.png: cannot be read"):
        fingerprint([root / "none.png"])


@pytest.mark.parametrize("stem", ["grün 検査", " a b ", "e\u0301", "x" * 251])
def test_unusual_names_work(tmp_path: Path, stem: str) -> None:
    write(tmp_path / "schön/train/good" / f"{stem}.png", 0)
    write(tmp_path / "schön/test/löcher" / f"{stem}.png", 1)
    write(tmp_path / "schön/ground_truth/löcher" / f"{stem}.png", 2)
    category = load_category(tmp_path, "schön")
    assert [path.stem for path in category.train] == [stem]
    assert category.test[0].mask == tmp_path / "schön/ground_truth/löcher" / f"{stem}.png"
    assert all(path.exists() for path in category.train)
    fingerprint(category.train)


def test_mask_is_found_across_unicode_forms(tmp_path: Path) -> None:
    write(tmp_path / "train/good/0.png", 0)
    write(tmp_path / "test/bad/\u00e9.png", 1)
    mask = write(tmp_path / "ground_truth/bad/e\u0301_mask.png", 2)
    assert load_category(tmp_path, None).test[0].mask == mask


def test_name_that_is_not_utf8_works(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    os.makedirs(folder + b"/c\xff/train/good")
    shutil.copy(os.fsencode(write(tmp_path / "a.png", 0)), folder + b"/c\xff/train/good/\xfe.png")
    assert list_categories(tmp_path) == ["c\udcff"]
    category = load_category(tmp_path, "c\udcff")
    assert all(path.exists() for path in category.train)
    fingerprint(category.train)
    with pytest.raises(InputError) as caught:
        load_category(tmp_path, "none")
    assert str(caught.value).endswith(r"which holds c\xff")


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 700_000)
    assert digest(tmp_path / "a") == hashlib.sha256(b"abc" * 700_000).digest()
    for path, match in ((Path("/proc/self/mem"), "Input/output error"), (tmp_path / "b", "No such file")):
        with pytest.raises(InputError, match=match):
            digest(path)


@pytest.mark.parametrize("name", ["Good", "GOOD", "OK", "Ok"])
def test_good_is_good_however_it_is_written(root: Path, name: str) -> None:
    expected = load_category(root, "nut")
    (root / "nut/test/good").rename(root / "nut/test" / name)
    (root / "nut/train/good").rename(root / "nut/train" / name)
    assert list_categories(root) == ["nut"]
    category = load_category(root, "nut")
    assert [each.name for each in category.train] == [each.name for each in expected.train]
    assert [(each.label, each.kind) for each in category.test if not each.label] == [(0, "good")]
    (root / "nut/train/good").mkdir()
    refuses(root, "holds both")


@pytest.mark.parametrize("folder", ["train/good", "test/good", "test/scratch"])
def test_files_that_are_left_out_are_named(root: Path, folder: str) -> None:
    for number in range(7):
        (root / "nut" / folder / f"{number}.cr3").write_bytes(b"x")
    with pytest.warns(SprfastWarning) as told:
        load_category(root, "nut")
    (sentence,) = [str(each.message) for each in told]
    assert sentence.startswith(f"{root / 'nut' / folder}: left out, without a suffix of an image (.bmp, ")
    assert sentence.endswith("): 0.cr3, 1.cr3, 2.cr3, 3.cr3, 4.cr3 and 2 more")


def test_files_beside_those_of_a_plain_folder_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 0)
    (tmp_path / "a b\n.cr3").write_bytes(b"x")
    (tmp_path / ".hidden").write_bytes(b"")
    (tmp_path / "overlays").mkdir()
    for read in (lambda: load_category(tmp_path, None), lambda: image_files([tmp_path])):
        with pytest.warns(SprfastWarning, match=r"left out.*: a b\\n\.cr3$"):
            read()


def test_nothing_is_said_where_nothing_is_left_out(root: Path) -> None:
    (root / "readme.txt").write_bytes(b"x")
    (root / "nut/license.txt").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_category(root, "nut")
        image_files([root / "nut/train/good"])
