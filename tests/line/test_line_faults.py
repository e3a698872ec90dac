"""What a line survives: overflow, lateness, bad frames, a failing network, broken callbacks, forks
and the end of the process.
"""

import ast
import dataclasses
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import sprfast
from sprfast.engine.engine import Engine
from sprfast.errors import (
    BackendError,
    ClosedError,
    DeadlineExceededError,
    DeviceLostError,
    InputError,
    ModelFileError,
    OutOfMemoryError,
    OverloadedError,
    ScoreError,
)
from sprfast.formats import model as model_file
from sprfast.line import Line
from sprfast.line.health import State
from sprfast.line.in_flight import InFlight
from sprfast.method.threshold import Verdict
from support import ROOT
from support.line_cases import PATIENCE, engine_with_network, eventually, frame
from support.scoring_mode_cases import with_mode


@pytest.fixture(scope="module")
def engine(small_model):
    return Engine(small_model)


@pytest.fixture
def held(small_model):
    """An engine whose network is held, and the network."""
    engine, network = engine_with_network(small_model)
    yield engine, network
    network.open.set()


def fill(line, network, count, first=0):
    """Futures of `count` frames, of which the network has begun the first one, alone."""
    network.open.clear()
    network.entered.clear()
    futures = [line.submit(frame(first), first, channel_order="rgb")]
    assert network.entered.wait(PATIENCE)
    return futures + [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(first + 1, first + count)]


def another(model):
    """A model of other weights."""
    return dataclasses.replace(model, weights={name: value * 1.1 for name, value in model.weights.items()})


def errors_of(futures):
    return [type(future.result(PATIENCE).error) for future in futures]


# A full line


def test_a_full_line_that_rejects(held):
    engine, network = held
    with Line(engine, capacity=3, overflow="reject") as line:
        futures = fill(line, network, 3)
        refused = line.submit(frame(9), "too much", channel_order="rgb").result(PATIENCE)
        assert (refused.verdict, type(refused.error), refused.id) == (Verdict.ERROR, OverloadedError, "too much")
        assert "refused: the line holds 3 frames" in refused.result.reason
        network.open.set()
        assert errors_of(futures) == [type(None)] * 3
        assert line.submit(frame(4), "room again", channel_order="rgb").result(PATIENCE).error is None
        assert line.health().errors["overloaded"] == 1


def test_an_answer_may_be_out_before_submit_returns(held, monkeypatch):
    engine, network = held
    admit = InFlight.admit

    def admit_and_wait(in_flight, entry):
        admit(in_flight, entry)
        assert entry.open or eventually(entry.future.done)

    monkeypatch.setattr(InFlight, "admit", admit_and_wait)
    with Line(engine, capacity=1, overflow="reject") as line:
        fill(line, network, 1)
        refused = line.submit(frame(9), "too much", channel_order="rgb")
        assert refused.done()
        assert isinstance(refused.result().error, OverloadedError)
        late = line.submit(frame(9), "missed", fault=DeadlineExceededError("a fault of the source"))
        assert isinstance(late.result(PATIENCE).error, OverloadedError)
        network.open.set()


def test_a_full_line_that_drops_the_oldest(held):
    engine, network = held
    with Line(engine, capacity=4, overflow="drop_oldest") as line:
        futures = fill(line, network, 4)
        futures += [line.submit(frame(seed), seed, channel_order="rgb") for seed in (4, 5)]
        assert errors_of(futures[1:3]) == [OverloadedError] * 2  # the first is in the network already
        assert not futures[0].done()
        network.open.set()
        answers = [future.result(PATIENCE) for future in futures]
    assert [answer.error is None for answer in answers] == [True, False, False, True, True, True]
    assert [answer.id for answer in answers] == list(range(6))
    assert "dropped for a newer frame" in answers[1].result.reason


def test_a_full_line_that_blocks(held):
    engine, network = held
    with Line(engine, capacity=2, overflow="block", timeout=0.05) as line:
        futures = fill(line, network, 2)
        late = line.submit(frame(2), 2, channel_order="rgb")
        assert isinstance(late.result(PATIENCE).error, OverloadedError)
        network.open.set()
        assert errors_of(futures) == [type(None)] * 2
    network.open.set()
    with Line(engine, capacity=2, overflow="block", timeout=PATIENCE) as line:
        futures = fill(line, network, 2)
        threading.Timer(0.1, network.open.set).start()
        third = line.submit(frame(2), 2, channel_order="rgb")  # returns when there is room
        assert futures[0].done()
        assert third.result(PATIENCE).error is None


def test_closing_frees_a_blocked_producer(held):
    engine, network = held
    line = Line(engine, capacity=1, timeout=PATIENCE)
    network.open.set()
    line.wait_until_started()
    fill(line, network, 1)
    raised = []

    def produce():
        try:
            line.submit(frame(1), 1, channel_order="rgb")
        except ClosedError as error:
            raised.append(error)

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.1)
    assert producer.is_alive()
    line.close(0.0)
    producer.join(PATIENCE)
    assert len(raised) == 1


@pytest.mark.parametrize("overflow", ["block", "reject", "drop_oldest"])
@pytest.mark.parametrize("in_order", [True, False])
def test_a_slow_consumer_leaves_memory_flat_and_loses_no_answer(engine, overflow, in_order):
    go, answers, taken, refused = threading.Event(), [], [], 0

    def consume(answer):
        assert go.wait(PATIENCE)
        answers.append(answer)

    with Line(engine, consume, capacity=4, overflow=overflow, timeout=0.001, in_order=in_order) as line:
        for number in range(60):
            try:
                line.submit(frame(0), number, channel_order="rgb")
                taken.append(number)
            except OverloadedError as error:
                assert "nobody takes its answers" in str(error)  # noqa: PT017
                refused += 1
            assert line.health().unanswered <= 8
        assert refused > 0
        assert (line.health().taken, line.health().refused) == (len(taken), refused)
        go.set()
        assert line.drain(PATIENCE)
    assert sorted(answer.id for answer in answers) == taken
    if in_order:
        assert [answer.id for answer in answers] == taken


# Lateness


def test_a_frame_is_answered_at_its_deadline_and_its_late_result_is_discarded(held):
    engine, network = held
    answers = []
    with Line(engine, answers.append) as line:
        network.open.clear()
        network.entered.clear()
        late = line.submit(frame(1), "late", channel_order="rgb", deadline=0.2)
        answer = late.result(PATIENCE)  # while the network still has it
        assert network.entered.is_set()
        assert (answer.verdict, type(answer.error)) == (Verdict.ERROR, DeadlineExceededError)
        assert answer.seconds >= 0.2
        assert answer.result.anomaly_map is None
        network.open.set()
        following = line.submit(frame(2), "next", channel_order="rgb").result(PATIENCE)
        assert following.result.pred_score == engine.predict(frame(2), "rgb").pred_score
        assert line.health().errors["deadline"] == 1
    assert [answer.id for answer in answers] == ["late", "next"]


def test_frames_that_are_late_already_cost_the_network_nothing(held):
    engine, network = held
    network.open.set()
    with Line(engine, deadline=5.0) as line:
        network.batches.clear()
        long_ago = [line.submit(frame(seed), seed, time.monotonic() - 6.0, channel_order="rgb") for seed in range(5)]
        assert errors_of(long_ago) == [DeadlineExceededError] * 5
        assert line.submit(frame(9), 9, channel_order="rgb", deadline=PATIENCE).result(PATIENCE).error is None
        assert network.batches == [1]


def test_an_answer_that_a_slow_callback_delays_beyond_its_deadline_is_no_pass(engine):
    passing = next(frame(seed) for seed in range(50) if engine.predict(frame(seed), "rgb").verdict is Verdict.PASS)
    go, seen = threading.Event(), []

    def consume(answer):
        seen.append(answer)
        assert go.wait(PATIENCE)

    with Line(engine, consume) as line:
        first = line.submit(passing, 1, channel_order="rgb")
        assert eventually(lambda: len(seen) == 1)
        second = line.submit(passing, 2, channel_order="rgb", deadline=0.3)
        assert eventually(lambda: not line._in_flight._entries[2].open)
        assert eventually(lambda: time.monotonic() > line._in_flight._entries[2].due)
        go.set()
        assert first.result(PATIENCE).verdict is Verdict.PASS
        assert isinstance(second.result(PATIENCE).error, DeadlineExceededError)


def test_in_order_an_answer_waits_for_those_before_it_up_to_its_deadline(held):
    engine, network = held
    order = []
    with Line(engine, lambda answer: order.append((answer.id, type(answer.error))), in_order=True) as line:
        network.open.clear()
        first = line.submit(frame(1), 1, channel_order="rgb", deadline=0.4)
        second = line.submit(b"bad", 2, deadline=PATIENCE)
        assert not second.done()
        assert isinstance(first.result(PATIENCE).error, DeadlineExceededError)
        assert isinstance(second.result(PATIENCE).error, InputError)
    assert order == [(1, DeadlineExceededError), (2, InputError)]


def test_the_wall_clock_may_jump(engine, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    with Line(engine, deadline=PATIENCE) as line:
        monkeypatch.setattr(time, "time", lambda: now - 3600)
        assert line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE).error is None
        monkeypatch.setattr(time, "time", lambda: now + 7200)
        answer = line.submit(frame(2), 2, channel_order="rgb").result(PATIENCE)
        assert answer.error is None
        assert answer.seconds < PATIENCE


def test_nothing_in_line_code_reads_the_wall_clock():
    folders = [ROOT / name for name in ("sprfast/line", "sprfast/engine", "sprfast/system", "bench/line")]
    # which dates reports
    files = [path for folder in folders for path in folder.rglob("*.py") if path.name != "environment.py"]
    assert all(any(path.is_relative_to(folder) for path in files) for folder in folders)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in (
                    ("time", "time"),
                    ("time", "localtime"),
                    ("datetime", "now"),
                ), path


# Ids


@pytest.mark.parametrize("when", ["in the line", "answered"])
def test_an_id_that_is_used_again_is_refused(held, when):
    engine, network = held
    network.open.set()
    answers = []
    with Line(engine, answers.append) as line:
        network.open.clear()
        first = line.submit(frame(1), "part", channel_order="rgb")
        if when == "answered":
            network.open.set()
            first.result(PATIENCE)
            assert eventually(lambda: line.health().unanswered == 0)
        with pytest.raises(InputError, match=f"id 'part': .*{when}"):
            line.submit(frame(2), "part", channel_order="rgb")
        network.open.set()
        assert first.result(PATIENCE).result.pred_score == engine.predict(frame(1), "rgb").pred_score
    assert len(answers) == 1


def test_the_memory_for_ids_and_alarms_is_bounded(engine, monkeypatch):
    from sprfast.line import in_flight

    monkeypatch.setattr(in_flight, "REMEMBERED", 10)
    with Line(engine, capacity=4, deadline=1000.0) as line:
        for number in range(100):
            line.submit(b"", number).result(PATIENCE)
        assert eventually(lambda: line.health().unanswered == 0)
        assert len(line._in_flight._remembered) == 10
        assert len(line._in_flight._due) <= 12 + 1
        assert line.submit(b"", 0).result(PATIENCE).error  # forgotten, so that it may come again


# Bad frames


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


# Another model


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


# Callbacks and the end


def test_a_callback_that_raises_costs_no_answer(engine, caplog):
    seen = []

    def consume(answer):
        seen.append(answer.id)
        raise ValueError("the valve does not answer")

    with Line(engine, consume) as line:
        futures = [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(5)]
        futures[0].add_done_callback(lambda future: 1 / 0)
        assert errors_of(futures) == [type(None)] * 5
        assert line.drain(PATIENCE)
        assert line.health().callback_failures == 5
    assert sorted(seen) == list(range(5))
    assert "the valve does not answer" in caplog.text


def test_a_future_cannot_be_cancelled(held):
    engine, network = held
    network.open.set()
    with Line(engine) as line:
        future = fill(line, network, 1)[0]
        assert not future.cancel()
        network.open.set()
        assert future.result(PATIENCE).error is None


def test_a_callback_may_use_the_line(engine):
    closed = threading.Event()

    def consume(answer):
        if answer.id == 0:
            line.submit(frame(1), 1, channel_order="rgb")
        else:
            line.close(0.1)
            closed.set()

    line = Line(engine, consume)
    line.submit(frame(0), 0, channel_order="rgb")
    assert closed.wait(PATIENCE)
    with pytest.raises(ClosedError):
        line.submit(frame(2), 2, channel_order="rgb")


SETUP = """
import faulthandler, os, sys, threading, time
faulthandler.dump_traceback_later(100, exit=True)
sys.path.insert(0, "tests")
import numpy as np
import sprfast
from support.line_cases import engine_with_network, frame
from sprfast.formats import model as model_file
from sprfast.line import Line
from sprfast.line.in_flight import InFlight
"""


def process(code, model_path, timeout=120):
    script = SETUP + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", script, str(model_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def test_the_interpreter_ends_with_work_queued(model_path):
    done = process(
        """
        engine, network = engine_with_network(model_file.load(sys.argv[1]))
        line = Line(engine, lambda answer: print(answer.id, answer.verdict, type(answer.error).__name__, flush=True))
        line.wait_until_started()
        network.open.clear()
        for number in range(3):
            line.submit(frame(number), number, channel_order="rgb")
        """,
        model_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split("\n")[:-1]) == ["0 ERROR ClosedError", "1 ERROR ClosedError", "2 ERROR ClosedError"]


def test_a_fork_of_the_process_is_told_so_and_the_parent_goes_on(model_path):
    done = process(
        """
        engine = sprfast.load(sys.argv[1])
        line = Line(engine)
        line.wait_until_started()
        child = os.fork()
        if child == 0:
            try:
                line.submit(frame(1), 1, channel_order="rgb")
            except Exception as error:
                print(type(error).__name__, error, flush=True)
            line.close()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print(line.submit(frame(1), 1, channel_order="rgb").result(60).error)
        line.close()
        """,
        model_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith("ClosedError this line was made in process")
    assert second == "None"


def test_models_are_reloaded_without_a_trace(engine, small_model):
    """Descriptors and threads; memory is what `sprfast soak` looks at."""

    def traces():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    if not Path("/proc/self/fd").exists():
        pytest.skip("there is no /proc here")
    with Line(engine) as line:
        line.swap(Engine(small_model))
        before = traces()
        for number in range(20):
            line.swap(Engine(small_model))
            line.submit(frame(1), number, channel_order="rgb").result(PATIENCE)
        assert traces() == before
    assert line.health().swaps == 21
