"""What the tests of the study share: a category on disk, models that held some of it back, and a
report of made-up figures.
"""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from sprfast.backends import registry as backends
from sprfast.bench.accuracy import costs, measure
from sprfast.bench.accuracy.rows import ROWS
from sprfast.bench.core import named_settings
from sprfast.config import PUBLISHED, Preprocessing
from sprfast.evaluation import calibration, metrics
from support.scoring_mode_cases import with_mode

CPU = torch.device("cpu")
BACKEND = backends.choose("auto", CPU)
SIZE = 16
HELD_BACK = [f"{number:03}.png" for number in range(12)]  # of 16 training images


def write_category(root, *, good=12, defective=8, masks=True):
    """Dark noise, of which a defect is a brighter patch. The folder."""
    random = np.random.default_rng(0)

    def write(path, pixels):
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)

    mask = np.zeros((SIZE, SIZE))
    mask[4:10, 6:12] = 255
    for folder, count in (("train/good", 16), ("test/good", good), ("test/dent", defective)):
        for number in range(count):
            pixels = random.random((SIZE, SIZE, 3)) * 80
            if folder == "test/dent":
                pixels += mask[..., None] * 0.1
                if masks:
                    write(root / "ground_truth" / "dent" / f"{number:03}_mask.png", mask)
            write(root / folder / f"{number:03}.png", pixels)
    return root


def model(small_model, seed=0, **provenance):
    """`small_model` for `SIZE`, with a noise seed in place of another training."""
    return dataclasses.replace(
        with_mode(small_model, threshold=None),
        preprocessing=Preprocessing(size=SIZE),
        noise_seed=seed,
        provenance={"held_back": HELD_BACK, "steps": 60} | provenance,
    )


def study(models, category, good=None, **changes):
    """`measure.study` of models that are said to be in files 0.safetensors and so on."""
    named = [(Path(f"{index}.safetensors"), each) for index, each in enumerate(models)]
    return measure.study(
        named, category, good, **{"backend": BACKEND, "device": CPU, "seconds": 1e-3, "rows": ROWS[:2]} | changes
    )


@contextlib.contextmanager
def quick(names=("eager",)):
    """Few backends beside the one in use, and the fewest calls for times."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(costs, "COMPARED", tuple(names))
        patched.setattr(named_settings, "ROUNDS", 1)
        patched.setattr(named_settings, "MAX_BATCH", 2)
        yield


def document(**changes):
    """A report of two models whose figures are as wide as can be; `changes` of its fields."""
    figures = {"mean": 0.9, "standard_error": 0.1, "values": [0.8, 1.0]}
    row = {
        "metrics": dict.fromkeys(metrics.KEYS, figures),
        "difference": dict.fromkeys(metrics.KEYS, figures | {"mean": 0.0}),
    }
    spread = {"median": 1234.5, "min": 1000.1, "max": 2000.2}
    times = {
        "passes": 3.0,
        "ms": spread,
        "images_per_s": spread,
        "speedup": {"median": 12.34, "min": 10.0, "max": 20.0},
    }
    of_way = {"calibrated_on": 1000, "held_back": 1000, "rate": 0.0501, "interval": [0.037, 0.064], "within": True}
    kept = {"promised": 0.05, "iid": of_way, "in_time": of_way | {"rate": 0.123, "within": False}, "across": of_way}
    too_few = {"calibrated_on": 6, "held_back": 6, "refused": "too few"}
    refused = {"promised": 0.01, "iid": too_few, "in_time": too_few}
    setting = row | {
        "passes": {"mean": 1.23, "standard_error": 0.01, "values": [1.22, 1.24]},
        "images": [[kept, kept], [refused, refused]],
    }
    settings = {name: setting | {"maps": setting["images"]} for name in (PUBLISHED, *calibration.SETTINGS)}
    backend = {
        "backend": "eager",
        "image_AUROC": 1.0,
        "pixel_AUROC": 0.5,
        "from_eager": {"image_AUROC": 0.0, "pixel_AUROC": -1e-4},
    }
    absent = {"backend": "onnxruntime", "reason": "needs onnx, not installed here: run pip install 'sprfast[onnx]'"}
    return {
        "schema_version": measure.SCHEMA_VERSION,
        "category": "transistor",
        "preprocessing": {"size": 1024},
        "backend": "cpu",
        "device": "cpu",
        "models": [{"file": f"{seed}.safetensors", "provenance": {"steps": 5994}} for seed in range(2)],
        "images": {"good": 12, "test": 2000, "defective": 1000},
        "rows": [
            row | {"name": each.name, "passes": draws, "field": each.field, "ms": 1000.0 * draws}
            for each, draws in ((each, each.schedule.draws) for each in ROWS)
        ],
        "settings": settings,
        "times": {"settings": dict.fromkeys(settings, times)},
        "backends": [backend, absent],
    } | changes
