"""An engine that goes leaves nothing behind, and what goes wrong with one image is that image's."""

import errno
import gc
import json
import re
import weakref

import numpy as np
import PIL.Image
import pytest

import sprfast
from sprfast.backends import registry as backends
from sprfast.data import images
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.engine.engine import Engine
from sprfast.errors import DeviceLostError, OutOfMemoryError
from sprfast.method.threshold import Verdict


def opened(name, model, folder):
    """An engine on a backend, or a runner of a plan."""
    if reason := backends.unavailable("cpu" if name == "plan" else name):
        pytest.skip(reason)
    if name != "plan":
        return Engine(model, name, "cpu")
    export.export(model, folder / "plan", Request("plan"))
    return sprfast.load(folder / "plan")


@pytest.mark.parametrize("name", ["cpu", "eager", "onnxruntime", "plan"])
def test_an_engine_that_goes_leaves_nothing(name, small_model, pictures, tmp_path):
    """Not even until cycles are collected: a model is 70 MB, and reloading is faster than that."""
    engine = opened(name, small_model, tmp_path)
    engine.predict(pictures)
    left = [weakref.ref(engine), weakref.ref(engine._session), weakref.ref(engine._noise(32, 32))]
    gc.disable()
    try:
        del engine
        assert [each() for each in left] == [None] * 3
    finally:
        gc.enable()


@pytest.fixture
def engine(small_model):
    return Engine(small_model, "eager", "cpu")


OF_ONE_IMAGE = {
    "no-memory": (MemoryError(), "no memory for it"),
    "read-error": (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    "bomb": (PIL.Image.DecompressionBombError("too many pixels"), "DecompressionBombError.*too many pixels"),
    "decoder": (SyntaxError("broken PNG file\nsecond line"), "SyntaxError.*broken PNG file$"),
}


@pytest.mark.parametrize(("error", "reason"), OF_ONE_IMAGE.values(), ids=OF_ONE_IMAGE)
def test_what_goes_wrong_with_one_image_is_its_error_alone(engine, pictures, monkeypatch, error, reason):
    expected = [result.pred_score for result in engine.predict(pictures)]
    load = images.load_image

    def failing(source, *args, **options):
        if source == pictures[1]:
            raise error
        return load(source, *args, **options)

    monkeypatch.setattr(images, "load_image", failing)
    results = engine.predict(pictures)
    assert results[1].verdict is Verdict.ERROR
    assert results[1].reason.startswith(f"{pictures[1]}: ")
    assert json.loads(json.dumps(results[1].to_json()))["reason"] == results[1].reason
    assert re.search(reason, results[1].reason)
    assert [result.pred_score for result in results[:1] + results[2:]] == expected[:1] + expected[2:]
    assert engine.predict(pictures[1]).verdict is Verdict.ERROR


def test_what_goes_wrong_with_the_device_is_not_an_image_s(engine, pictures, monkeypatch):
    def lost(*args, **options):
        raise DeviceLostError("gone")

    monkeypatch.setattr(images, "load_image", lost)
    with pytest.raises(DeviceLostError, match="gone"):
        engine.predict(pictures)


def test_an_image_too_large_for_the_memory_is_its_error_alone(engine, monkeypatch):
    small, large = (np.full((32, width, 3), 90, np.uint8) for width in (32, 64))
    expected = engine.predict(small, channel_order="rgb").pred_score
    maps = engine._session.maps

    def scarce(x, z):
        if x.shape[3] > 32:
            raise MemoryError("for 64 columns")
        return maps(x, z)

    monkeypatch.setattr(engine._session, "maps", scarce)
    results = engine.predict([small, large, small], channel_order="rgb")
    assert [result.pred_score for result in results[::2]] == [expected] * 2
    assert results[1].verdict is Verdict.ERROR
    assert "for 64 columns" in results[1].reason
    with pytest.raises(OutOfMemoryError, match="for 64 columns"):
        engine.predict([large, large], channel_order="rgb")


def test_no_memory_for_a_batch_of_images_goes_in_halves(engine, pictures, monkeypatch):
    expected = [result.pred_score for result in engine.predict(pictures)]
    stack = np.stack

    def scarce(arrays, *args, **options):
        if len(arrays) > 1:
            raise MemoryError
        return stack(arrays, *args, **options)

    monkeypatch.setattr(np, "stack", scarce)
    assert [result.pred_score for result in engine.predict(pictures)] == expected
    assert engine.batch_limit == 1
