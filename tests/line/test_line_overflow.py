"""A full line, late frames and ids that are used again: each frame has one answer all the same."""

import ast
import threading
import time

import pytest

from sprfast.errors import (
    ClosedError,
    DeadlineExceededError,
    InputError,
    OverloadedError,
)
from sprfast.line import Line
from sprfast.line.in_flight import InFlight
from sprfast.method.threshold import Verdict
from support import ROOT
from support.line_cases import PATIENCE, entry_of, errors_of, eventually, fill, frame


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
        assert eventually(lambda: not entry_of(line, 2).open)
        assert eventually(lambda: time.monotonic() > entry_of(line, 2).due)
        go.set()
        assert first.result(PATIENCE).verdict is Verdict.PASS
        assert isinstance(second.result(PATIENCE).error, DeadlineExceededError)


@pytest.mark.clock
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
    dated = {
        "environment.py",
        "history.py",
        "message.py",
        "mqtt.py",
        "webhook.py",
    }  # reports, a page and messages, for a person to read
    files = [path for folder in folders for path in folder.rglob("*.py") if path.name not in dated]
    assert all(any(path.is_relative_to(folder) for path in files) for folder in folders)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in (
                    ("time", "time"),
                    ("time", "localtime"),
                    ("datetime", "now"),
                ), path


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
    from sprfast.line import known_ids

    monkeypatch.setattr(known_ids, "REMEMBERED", 10)
    with Line(engine, capacity=4, deadline=1000.0) as line:
        for number in range(100):
            line.submit(b"", number).result(PATIENCE)
        assert eventually(lambda: line.health().unanswered == 0)
        assert len(line._in_flight._known) == 10
        assert len(line._in_flight._due) <= 12 + 1
        assert line.submit(b"", 0).result(PATIENCE).error  # forgotten, so that it may come again
