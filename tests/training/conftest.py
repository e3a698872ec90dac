import numpy as np
import PIL.Image
import pytest


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    random = np.random.default_rng(0)
    for i in range(8):
        PIL.Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def output(tmp_path):
    return tmp_path / "model.safetensors"
