"""What a line survives: bad frames, a failing network, a broken model."""

import dataclasses
import logging
import threading

import numpy as np
import PIL.Image
import pytest
import torch

import sprfast
from sprfast.engine.engine import Engine
from sprfast.errors import (
    BackendError,
    DeviceLostError,
    InputError,
    ModelFileError,
    OutOfMemoryError,
    ScoreError,
)
from sprfast.formats import model as model_file
from sprfast.line import Line
from sprfast.line.health import State
from sprfast.method.threshold import Verdict
from support.line_cases import PATIENCE, engine_with_network, errors_of, eventually, fill, frame
from support.scoring_mode_cases import with_mode


def another(model):
    """A model of other weights."""
    return dataclasses.replace(model, weights={name: value * 1.1 for name, value in model.weights.items()})


def test_bad_frames_do_not_disturb_their_neighbours(held, tmp_path):
    engine, network = held
    network.open.set()
    truncated = tmp_path / "truncated.jpg"
    PIL.Image.fromarray(frame(1, (64, 64, 3))).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:-200])
    nan = np.full((32, 32, 3), np.nan, np.float32)
    bad = [
        (nan, "rgb"),
        (truncated, None),
        (tmp_path / "missing.png", None),
        (frame(1), None),
        (frame(1), "grey"),
        (None, None),
    ]
    bad += [
        (frame(1).astype(object), "rgb"),
        (torch.full((3, 32, 32), torch.nan), None),
        (torch.zeros(3, 32, 32, device="meta"), None),
    ]
    bad += [(frame(1).astype(">u2"), "rgb"), (np.zeros((0, 4, 3), np.uint8), "rgb"), (object(), None), (12, None)]
    with Line(engine) as line:
        good = fill(line, network, 2)
        wrong = [line.submit(image, ("bad", index), channel_order=order) for index, (image, order) in enumerate(bad)]
        good += [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(2, 4)]
        network.open.set()
        assert errors_of(wrong) == [InputError] * len(bad)
        assert all(future.result().verdict is Verdict.ERROR for future in wrong)
        scores = [future.result(PATIENCE).result.pred_score for future in good]
    assert scores == [engine.predict(frame(seed), "rgb").pred_score for seed in range(4)]


def test_a_score_that_is_no_number_is_an_error(small_model):
    weights = {
        name: value * 1e30 if name == "outc.conv.weight" else value for name, value in small_model.weights.items()
    }
    broken = Engine(dataclasses.replace(small_model, weights=weights))
    result = broken.predict(frame(1), "rgb")
    assert not np.isfinite(result.pred_score)
    assert result.verdict is Verdict.ERROR
    with pytest.raises(BackendError):  # the self-test refuses such a model
        Line(broken).wait_until_started()


def test_a_score_that_becomes_no_number_later_is_an_error(small_model):
    engine, network = engine_with_network(small_model)
    with Line(engine) as line:
        real, network._backend = network._backend, _Overflowing(network._backend)
        answer = line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE)
        assert (answer.verdict, type(answer.error)) == (Verdict.ERROR, ScoreError)
        assert answer.result.anomaly_map is not None
        network._backend = real
        assert line.submit(frame(1), 2, channel_order="rgb").result(PATIENCE).error is None
        assert line.health().errors["score"] == 1


class _Overflowing:
    """Maps as 16-bit feature maps give them that have overflowed."""

    def __init__(self, backend):
        self._backend = backend

    def maps(self, x, noise):
        errors, anomaly_maps = self._backend.maps(x, noise)
        return errors * float("inf"), anomaly_maps * float("nan")


# A failing network


def bright(x):
    """Whether one of the images is the white one."""
    return bool((x.amin(dim=(1, 2, 3)) > 0.9).any())


WHITE = np.full((32, 32, 3), 255, np.uint8)


def test_a_frame_on_which_the_network_fails_does_not_take_its_batch_with_it(held, caplog):
    engine, network = held
    network.open.set()
    network.fault = lambda x: RuntimeError("this image, never") if bright(x) else None
    with Line(engine) as line:
        good = fill(line, network, 3)
        poison = line.submit(WHITE, "poison", channel_order="rgb")
        good.append(line.submit(frame(3), 3, channel_order="rgb"))
        assert eventually(lambda: len(line._in_flight._ready) == 4)
        network.open.set()
        answer = poison.result(PATIENCE)
        assert (answer.verdict, type(answer.error)) == (Verdict.ERROR, BackendError)
        assert "this image, never" in str(answer.error)
        assert errors_of(good) == [type(None)] * 4
        assert line.submit(WHITE, "again", channel_order="rgb").result(PATIENCE).verdict is Verdict.ERROR
        assert line.health().state is State.DEGRADED
        assert "this image, never" in line.health().reasons[0]
        assert line.submit(frame(5), 5, channel_order="rgb").result(PATIENCE).error is None
        assert line.health().state is State.OK
    assert any(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)


def test_too_little_memory_halves_the_batches_and_keeps_the_scores(held):
    engine, network = held
    network.open.set()
    expected = [engine.predict(frame(seed), "rgb").pred_score for seed in range(9)]
    with Line(engine) as line:
        futures = fill(line, network, 9)
        assert eventually(lambda: len(line._in_flight._ready) == 8)
        network.memory = 3
        network.batches.clear()
        network.open.set()
        assert [future.result(PATIENCE).result.pred_score for future in futures] == expected
        assert network.batches == [1, 8, 4, 2, 2, 2, 2]  # remembered: 4 is not tried again
        assert line.health().reasons == ("the memory holds batches of 2 images, not 16",)
        network.memory = 0
        answer = line.submit(frame(1), "none fits", channel_order="rgb").result(PATIENCE)
        assert (answer.verdict, type(answer.error)) == (Verdict.ERROR, OutOfMemoryError)
        assert "CUDA out of memory" in str(answer.error)
        network.memory = None
        assert line.submit(frame(1), "again", channel_order="rgb").result(PATIENCE).result.pred_score == expected[1]


def test_memory_is_short_in_predict_too(small_model):
    engine, network = engine_with_network(small_model)
    network.memory = 3
    frames = [frame(seed) for seed in range(20)]
    scores = [result.pred_score for result in engine.predict(frames, "rgb")]
    network.memory = None
    assert scores == [engine.predict(each, "rgb").pred_score for each in frames]
    assert engine.batch_limit == 2


def test_a_lost_device_fails_the_line_and_answers_everything(held):
    engine, network = held
    network.open.set()
    with Line(engine) as line:
        futures = fill(line, network, 4)
        network.fault = lambda x: RuntimeError(
            "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."
        )
        network.open.set()
        assert errors_of(futures) == [DeviceLostError] * 4
        assert all(future.result().verdict is Verdict.ERROR for future in futures)
        health = line.health()
        assert health.state is State.FAILED
        assert (
            "an illegal memory access was encountered; the device cannot be used by this process any more, start a "
            "new one" in health.reasons[0]
        )
        network.fault = lambda x: None  # nothing is believed of that device any more
        assert errors_of([line.submit(frame(9), 9, channel_order="rgb")]) == [DeviceLostError]
        with pytest.raises(DeviceLostError):
            line.wait_until_started()
        with pytest.raises(BackendError, match="failed, make a new one"):
            line.swap(Engine(engine.model))


def test_a_broken_model_does_not_replace_the_one_that_serves(engine, small_model, tmp_path):
    path = tmp_path / "new.safetensors"
    model_file.save(path, small_model)
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    wrong, network = engine_with_network(small_model)
    network._backend = engine_with_network(another(small_model))[1]._backend  # the maps of another model
    failing, dead = engine_with_network(small_model)
    dead.fault = lambda x: RuntimeError("no such kernel")
    expected = engine.predict(frame(1), "rgb").pred_score
    with Line(engine) as line:
        with pytest.raises(ModelFileError):
            line.swap(sprfast.load(path))
        for predictor, said in ((wrong, "is off by"), (failing, "no such kernel")):
            with pytest.raises(BackendError, match=said):
                line.swap(predictor)
        with pytest.raises(InputError, match="no threshold"):
            line.swap(Engine(with_mode(small_model, threshold=None)))
        assert line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE).result.pred_score == expected
        assert line.health().swaps == 0
        assert line.health().state is State.OK


def test_the_old_model_serves_while_the_new_one_is_tested(small_model):
    old, slow = Engine(small_model), engine_with_network(small_model)
    with Line(old) as line, slow[1].held():
        swapping = threading.Thread(target=line.swap, args=(slow[0],))
        swapping.start()
        assert slow[1].entered.wait(PATIENCE)
        assert line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE).error is None
        assert line.health().model.backend == old.backend
        slow[1].open.set()
        swapping.join(PATIENCE)
        assert line.health().model.backend == "Network"
