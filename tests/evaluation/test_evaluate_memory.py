"""Evaluation: the numbers of arrays in memory, and no more memory for many images than for few."""

import errno
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label

from sprfast.data import images
from sprfast.data.datasets import Category, Sample
from sprfast.engine.predictor import Result
from sprfast.errors import InputError
from sprfast.evaluation import column, metrics
from sprfast.evaluation.column import Column
from sprfast.evaluation.evaluate import evaluate
from sprfast.method.threshold import Verdict


class Scripted:
    """A predictor whose maps are made when they are asked for."""

    threshold = None

    def predict(self, paths):
        return [self._result(path) for path in paths]

    def _result(self, path):
        map_ = np.random.default_rng(int(path.stem)).random((256, 256), np.float32)
        return Result(Verdict.REJECT, float(map_.max()), 0.5, map_, map_.copy(), (9, 9), 1.0)


@pytest.fixture(autouse=True)
def _masks(monkeypatch):
    mask = np.zeros((256, 256), bool)
    mask[10:20, 10:30] = mask[200, 3] = True
    monkeypatch.setattr(images, "load_mask", lambda path: mask.copy())


def category(count):
    kinds = [("good", "dent")[i % 2] for i in range(count)]
    samples = [
        Sample(Path(f"{i}.png"), int(kind != "good"), kind, None if kind == "good" else Path("mask"))
        for i, kind in enumerate(kinds)
    ]
    return Category("screw", (), tuple(samples))


def peak(count):
    tracemalloc.start()
    try:
        evaluate(Scripted(), category(count))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_image_more_takes_no_memory(monkeypatch):
    """It was 1.2 MB; what is left is its name, its score and its mark."""
    monkeypatch.setattr(column, "PART", 1000)
    evaluate(Scripted(), category(2))  # imports
    assert (peak(48) - peak(32)) / 16 < 4000


def in_memory(maps, masks):
    """pixel_AUROC and AUPRO as they were computed from whole arrays."""
    good, defect = np.sort(maps[~masks]), maps[masks]
    before = (good.size - np.searchsorted(good, defect, side="right")) / good.size
    after = (good.size - np.searchsorted(good, defect, side="left")) / good.size
    start, end = np.minimum(before, metrics.AUPRO_LIMIT), np.minimum(after, metrics.AUPRO_LIMIT)
    ramp = np.where(after > before, (end - start) ** 2 / (2 * np.where(after > before, after - before, 1)), 0)
    structure = np.zeros((3, 3, 3), bool)
    structure[1] = True
    regions, count = label(masks, structure=structure)
    region = regions[masks]
    shares = 1.0 / (np.bincount(region)[region] * count)
    area = np.sum(shares * (ramp + metrics.AUPRO_LIMIT - end))
    return float(1.0 - np.mean((before + after) / 2)), float(min(area / metrics.AUPRO_LIMIT, 1.0))


@pytest.mark.parametrize("part", [7, column.PART])
@pytest.mark.parametrize("levels", [None, 8])
def test_the_numbers_are_those_of_arrays_in_memory_to_the_last_bit(part, levels, monkeypatch):
    monkeypatch.setattr(column, "PART", part)
    rng = np.random.default_rng(1)
    masks = rng.random((9, 40, 50)) > 0.93
    masks[::3] = False
    maps = (rng.normal(size=masks.shape) + masks).astype(np.float32)
    if levels:
        maps = np.round(maps * levels).astype(np.float32)
    found = metrics.evaluate(maps.max(axis=(1, 2)), masks.any(axis=(1, 2)).astype(int), maps, masks)
    assert (found["pixel_AUROC"].value, found["AUPRO"].value) == in_memory(maps, masks)


def test_no_room_for_temporary_files_is_a_sentence(monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match=r"no temporary file .*No space left on device.*set TMPDIR"):
        evaluate(Scripted(), category(3))


def test_a_disk_that_fills_up_is_a_sentence_and_no_signal():
    full = Column()
    full._file.close()
    full._file = open("/dev/full", "wb")  # noqa: SIM115  # writing to it fails, and changes nothing
    with pytest.raises(InputError, match="No space left on device"):
        full.append(np.zeros(1 << 20))
    full.close()
