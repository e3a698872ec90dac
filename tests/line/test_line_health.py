"""The health of a line, its watch for drift, and the model that takes over."""

import dataclasses

import numpy as np
import pytest

from sprfast.engine.engine import Engine
from sprfast.line import Line, drift
from sprfast.line.health import Counters, State
from sprfast.method import threshold
from sprfast.method.threshold import Verdict
from support.line_cases import PATIENCE, engine_with_network, eventually, frame
from support.scoring_mode_cases import with_mode


def test_another_model_takes_over_while_frames_come(small_model):
    other = dataclasses.replace(small_model, noise_seed=7)
    first, second = Engine(small_model), Engine(other)
    scores = [engine.predict(frame(1), "rgb").pred_score for engine in (first, second)]
    assert scores[0] != scores[1]
    with Line(first) as line:
        assert line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE).result.pred_score == scores[0]
        line.swap(second)
        assert line.submit(frame(1), 2, channel_order="rgb").result(PATIENCE).result.pred_score == scores[1]
        assert line.health().swaps == 1


def test_a_frame_is_scored_by_the_model_that_prepared_it(small_model):
    old, network = engine_with_network(small_model)
    new = Engine(
        dataclasses.replace(small_model, preprocessing=dataclasses.replace(small_model.preprocessing, size=48))
    )
    with Line(old) as line:
        with network.held():
            futures = [line.submit(frame(0), 0, channel_order="rgb")]
            assert network.entered.wait(PATIENCE)
            futures.append(line.submit(frame(1), 1, channel_order="rgb"))
            assert eventually(lambda: len(line._in_flight._ready) == 1)
            line.swap(new)
            futures.append(line.submit(frame(2), 2, channel_order="rgb"))
            assert eventually(lambda: len(line._in_flight._ready) == 2)
        results = [future.result(PATIENCE).result for future in futures]
    assert [result.error_map.shape for result in results] == [(32, 32), (32, 32), (48, 48)]
    assert results[1].pred_score == old.predict(frame(1), "rgb").pred_score
    assert results[2].pred_score == new.predict(frame(2), "rgb").pred_score


def test_health_says_how_it_goes(small_model):
    engine, network = engine_with_network(small_model)
    with network.held():
        line = Line(engine, capacity=7)
        assert line.health().state is State.STARTING
        waiting = line.submit(frame(1), 1, channel_order="rgb")
        assert not waiting.done()
    line.wait_until_started()
    assert waiting.result(PATIENCE).error is None
    assert line.health().state is State.OK
    for index in range(6):
        assert line.submit(b"", ("bad", index)).result(PATIENCE).verdict is Verdict.ERROR
    health = line.health()
    assert health.state is State.DEGRADED
    assert health.reasons == ("6 of the last 100 answers are ERROR: 6 input",)
    assert (health.taken, health.capacity, health.errors["input"], sum(health.latencies.counts)) == (7, 7, 6, 7)
    assert health.verdicts["ERROR"] == 6
    assert (health.model.sha256, health.model.backend, health.model.precision) == (
        small_model.sha256,
        "Network",
        "float32",
    )
    for index in range(100):
        line.submit(frame(1), index + 10, channel_order="rgb").result(PATIENCE)
    assert line.health().state is State.OK
    line.close()
    assert line.health().state is State.CLOSED


def test_health_notices_a_network_that_does_not_return(small_model, monkeypatch):
    from sprfast.line import line as module

    engine, network = engine_with_network(small_model)
    with Line(engine) as line:
        monkeypatch.setattr(module, "STALL", 0.0)
        with network.held():
            line.submit(frame(1), 1, channel_order="rgb")
            assert network.entered.wait(PATIENCE)
            assert line.health().reasons == ("the network has not returned for 0 s",)
            assert line.health().state is State.DEGRADED
        assert line.drain(PATIENCE)


def test_after_a_swap_scores_of_the_old_model_are_not_watched(small_model):
    calibrated = with_mode(small_model, threshold=threshold.calibrate(np.linspace(0.5, 1.0, 50), 0.05))
    old, network = engine_with_network(calibrated)
    new = Engine(calibrated)
    with Line(old) as line:
        with network.held():
            futures = [line.submit(frame(0), 0, channel_order="rgb")]
            assert network.entered.wait(PATIENCE)
            futures.append(line.submit(frame(1), 1, channel_order="rgb"))
            assert eventually(lambda: len(line._in_flight._ready) == 1)
            line.swap(new)
        assert [future.result(PATIENCE).verdict for future in futures] == [Verdict.PASS] * 2
        assert line.submit(frame(2), 2, channel_order="rgb").result(PATIENCE).verdict is Verdict.PASS
        assert eventually(lambda: line._counters._drift._filled == 1)


def test_only_parts_that_passed_are_watched_for_drift():
    counters = Counters(drift.Drift(range(50), window=5, false_alarm_rate=0.01))
    for score in range(5):
        counters.watch(Verdict.REJECT, 1000.0 + score)
        counters.watch(Verdict.ERROR, float("nan"))
        counters.watch(Verdict.PASS, None)  # of the model before
    assert counters._drift.report().windows == 0
    for score in range(5):
        counters.watch(Verdict.PASS, 1000.0 + score)
    assert counters._drift.report().alarms == 1


def test_a_lamp_that_ages_shows_in_health_while_parts_still_pass(small_model):
    def parts(seed, count, light):
        random = np.random.default_rng(seed)
        return [(light + 20 * random.random((32, 32, 3))).astype(np.uint8) for _ in range(count)]

    engine = Engine(small_model)
    scores = [result.pred_score for result in engine.predict(parts(0, 400, light=100), "rgb")]
    calibrated = Engine(with_mode(small_model, threshold=threshold.calibrate(scores, 0.02)))
    numbers = iter(range(10_000))

    def send(pictures):
        for picture in pictures:
            line.submit(picture, next(numbers), channel_order="rgb")
        assert eventually(lambda: line.health().unanswered == 0)
        return line.health()

    with Line(calibrated) as line:
        before = send(parts(1, drift.WINDOW + 30, light=100))
        assert (before.state, before.drift.windows, before.drift.alarms) == (State.OK, 1, 0)
        after = send(parts(2, 2 * drift.WINDOW, light=75))
        assert after.verdicts["REJECT"] < 100
        assert after.state is State.DEGRADED
        assert "parts that passed differ from the calibration's" in after.reasons[0]
        assert after.drift.drifted
        assert after.drift.median != pytest.approx(after.drift.calibration_median, rel=1e-3)
        line.swap(engine)
        assert line.health().state is State.OK
        assert line.health().drift is None
        assert line.health().drift_reason == "the threshold does not come from a calibration"
