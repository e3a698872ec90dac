"""Evaluation by two gloo processes under torchrun, as one process does it."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from sprfast.data import datasets as data
from sprfast.engine.engine import Engine
from sprfast.errors import CheckFailedError
from sprfast.evaluation import evaluate as evaluation
from sprfast.system import devices
from support.torchrun import popen, torchrun


@pytest.fixture(scope="module")
def category(tmp_path_factory):
    """40 test images: three calls for two processes."""
    root = tmp_path_factory.mktemp("category")
    generator = np.random.default_rng(1)
    for kind, count in (("train/good", 1), ("test/good", 19), ("test/dent", 21)):
        (root / kind).mkdir(parents=True)
        for number in range(count):
            contrast = generator.uniform(0.2, 1.0)
            PIL.Image.fromarray((generator.random((32, 32, 3)) * 255 * contrast).astype(np.uint8)).save(
                root / kind / f"{number:03}.png"
            )
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 255
    (root / "ground_truth" / "dent").mkdir(parents=True)
    for number in range(21):
        PIL.Image.fromarray(mask).save(root / "ground_truth" / "dent" / f"{number:03}_mask.png")
    return root


@pytest.mark.process
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_two_processes_evaluate_as_one_bit_for_bit(backend, category, model_path, tmp_path):
    found = []
    for name, launcher in (("one", []), ("two", torchrun("--redirects", "1:3", "--log-dir", tmp_path / "logs"))):
        figure = tmp_path / f"{name}.png"
        run = popen(
            [
                *launcher,
                "-m",
                "sprfast",
                "evaluate",
                model_path,
                category,
                "--backend",
                backend,
                "--figure",
                figure,
                "--json",
            ]
        )
        out, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        found.append((json.loads(out), figure.read_bytes()))
    assert found[0] == found[1]
    assert found[0][0]["categories"][0]["images"] == 40
    # the second is silent
    assert [path.read_text() for path in (tmp_path / "logs").glob("*/attempt_0/1/std*.log")] == ["", ""]


class Paths:
    """Answers each path with itself."""

    def predict(self, paths):
        assert len(paths) <= 16
        return paths


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_share_the_images_without_gaps_or_duplicates(world_size, category):
    test = data.load_category(category, None).test

    def parts(rank):
        return list(evaluation.score(Paths(), data.Category("c", (), test), lambda done, total: None, rank, world_size))

    rounds = list(zip(*map(parts, range(world_size)), strict=True))
    assert [path for each in rounds for part in each for _, path in part] == [sample.path for sample in test]


class Doubled:
    """A group of two whose second process has scored the first one's images."""

    rank, world_size = 0, 2

    def gather(self, own):
        return [own, own]


def test_images_that_are_not_scored_once_are_refused(category, small_model):
    loaded = data.load_category(category, None, small_model.preprocessing)
    with pytest.raises(CheckFailedError, match="not every test image was scored once"):
        evaluation.evaluate_among(Doubled(), Engine(small_model), loaded)


def test_cuda_without_a_number_is_the_own_device_of_each_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.resolve("cuda") == devices.resolve(None) == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.resolve("cuda") == devices.resolve(None) == torch.device("cuda:1")
    assert devices.resolve("cuda:0") == torch.device("cuda:0")
