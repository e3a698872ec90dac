import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sprfast.data import scenes
from sprfast.errors import BackendError, InputError


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    scenes.write_scenes(folder)
    return folder / scenes.CATEGORY


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_layout_holds_each_split_and_each_kind(category: Path) -> None:
    expected = {f"{split}/good": count for split, count in scenes.GOOD_IMAGES.items()}
    expected |= {
        f"{root}/{kind}": scenes.DEFECTIVE_IMAGES for root in ("test", "ground_truth") for kind in scenes.KINDS
    }
    found = {str(parent): 0 for parent in {path.parent for path in contents(category)}}
    for path in contents(category):
        found[str(path.parent)] += 1
    assert found == expected
    assert {read(category / path).shape for path in contents(category)} == {(64, 64)}


def test_same_seed_gives_the_same_bytes_and_overwrites_them(category: Path, tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path)
    once = contents(tmp_path)
    assert once == contents(category.parent)
    scenes.write_scenes(tmp_path)
    assert contents(tmp_path) == once


def test_another_seed_gives_other_images(category: Path, tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path, seed=1)
    first, second = contents(category), contents(tmp_path / scenes.CATEGORY)
    assert first.keys() == second.keys()
    assert all(first[Path("test", kind, "000.png")] != second[Path("test", kind, "000.png")] for kind in scenes.KINDS)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_splits_share_no_pixel_of_the_photograph(seed: int) -> None:
    seen = {split: np.zeros((scenes.PHOTO_SIDE, scenes.PHOTO_SIDE), dtype=bool) for split in scenes.BANDS}
    for crop in scenes.plan_crops(seed):
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= scenes.PHOTO_SIDE
        assert 0 <= top < bottom <= scenes.PHOTO_SIDE
        seen[crop.split][top:bottom, left:right] = True
    assert all(used.any() for used in seen.values())
    assert np.sum(list(seen.values()), axis=0).max() == 1


def test_no_two_images_are_the_same_crop() -> None:
    crops = scenes.plan_crops()
    assert len({crop.box for crop in crops}) == len(crops)
    assert len({crop.image_path for crop in crops}) == len(crops)


def test_good_images_are_unchanged_pixels_of_the_photograph(category: Path) -> None:
    photo = np.asarray(scenes.load_photograph(scenes.CATEGORY))
    for crop in scenes.plan_crops():
        if crop.kind == "good":
            left, top, right, bottom = crop.box
            np.testing.assert_array_equal(read(category / crop.image_path), photo[top:bottom, left:right])


def assert_exact(image: np.ndarray, mask: np.ndarray, clean: np.ndarray) -> None:
    assert set(np.unique(mask)) == {0, 255}
    drawn = mask == 255
    assert drawn.mean() < 0.15
    np.testing.assert_array_equal(image[~drawn], clean[~drawn])
    assert np.abs(image.astype(float) - clean)[drawn].mean() >= scenes.VISIBLE_CHANGE


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_mask_is_exact_and_small_and_its_defect_visible(category: Path, kind: str) -> None:
    photo = scenes.load_photograph(scenes.CATEGORY)
    crops = [crop for crop in scenes.plan_crops() if crop.kind == kind]
    assert len(crops) == scenes.DEFECTIVE_IMAGES
    for crop in crops:
        assert_exact(read(category / crop.image_path), read(category / crop.mask_path), scenes.cut(photo, crop.box, 64))


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_defects_grow_with_the_image(kind: str) -> None:
    box = next(crop.box for crop in scenes.plan_crops() if crop.kind == kind)
    areas = []
    for size in (32, 64, 200):
        clean = scenes.cut(scenes.load_photograph(scenes.CATEGORY), box, size)
        donor = scenes.cut(scenes.load_photograph(scenes.DONORS[0]), box, size)
        masks = []
        for i in range(10):
            image, mask = scenes.draw_defect(kind, clean, donor, np.random.default_rng(i))
            assert_exact(image, mask, clean)
            masks.append((mask > 0).mean())
        areas.append(np.mean(masks))
    assert max(areas) < 2.0 * min(areas)


def test_drawing_leaves_the_clean_crop_as_it_was() -> None:
    clean = scenes.cut(scenes.load_photograph(scenes.CATEGORY), (0, 0, 64, 64), 64).copy()
    before = clean.copy()
    scenes.draw_defect("blob", clean, clean, np.random.default_rng(0))
    np.testing.assert_array_equal(clean, before)


def test_a_defect_that_cannot_be_seen_is_an_input_error() -> None:
    flat = np.full((64, 64), 128, dtype=np.uint8)
    with pytest.raises(InputError, match="blur"):
        scenes.draw_defect("blur", flat, flat, np.random.default_rng(0))


@pytest.mark.parametrize(("argument", "value"), [("size", 31), ("size", 513), ("seed", -1), ("seed", 2**32)])
def test_argument_out_of_range_is_an_input_error(argument: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{argument}: {value}"):
        scenes.write_scenes(tmp_path, **{argument: value})
    assert not list(tmp_path.iterdir())


def test_foreign_image_in_the_folder_is_an_input_error(tmp_path: Path) -> None:
    foreign = tmp_path / scenes.CATEGORY / "train" / "good" / "mine.png"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"mine\.png"):
        scenes.write_scenes(tmp_path)
    assert contents(tmp_path) == {foreign.relative_to(tmp_path): b"mine"}


def test_folder_that_is_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="taken"):
        scenes.write_scenes(tmp_path / "taken")


def test_missing_scikit_image_is_a_backend_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # what makes an import of it fail
    with pytest.raises(BackendError, match=r'pip install "sprfast\[demo\]"') as caught:
        scenes.write_scenes(tmp_path)
    assert caught.value.exit_code == 3


def test_photograph_that_is_not_shipped_is_a_backend_error() -> None:
    with pytest.raises(BackendError, match=r"granite\.png"):
        scenes.load_photograph("granite")
