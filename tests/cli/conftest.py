import numpy as np
import PIL.Image
import pytest

from support.line_cases import frame


@pytest.fixture
def data_set(tmp_path):
    """Two categories in the MVTec AD layout, 16x16 images."""
    random = np.random.default_rng(0)
    root = tmp_path / "data"

    def write(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(value).save(path)

    for category in ("bolt", "nut"):
        for split, count in (("train/good", 4), ("test/good", 2), ("test/dent", 2)):
            for number in range(count):
                write(
                    root / category / split / f"{number:03}.png", random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                )
        for number in range(2):
            mask = np.zeros((16, 16), dtype=np.uint8)
            mask[4:8, 4:8] = 255
            write(root / category / "ground_truth" / "dent" / f"{number:03}_mask.png", mask)
    return root


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of 20 good images, 32x32: half of them are enough for a field and thresholds at a
    rate of 0.2.
    """
    folder = tmp_path_factory.mktemp("good")
    for index in range(20):
        PIL.Image.fromarray(frame(200 + index)).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A folder of 6 other images."""
    folder = tmp_path_factory.mktemp("fresh")
    for index in range(6):
        PIL.Image.fromarray(frame(300 + index)).save(folder / f"{index}.png")
    return folder
