"""Deadlines while the caller's code holds a line's threads: every future has its answer by its
deadline, and no PASS leaves after it.
"""

import logging
import threading
import time

import pytest

from sprfast.errors import ClosedError, DeadlineExceededError, InputError
from sprfast.line import Line
from sprfast.line.sources import FolderWatch, Stream
from sprfast.method.threshold import Verdict
from support.line_cases import PATIENCE, entry_of, eventually, fill, frame

SOON = 0.15  # seconds of a deadline


@pytest.fixture
def passing(engine):
    return next(frame(seed) for seed in range(50) if engine.predict(frame(seed), "rgb").verdict is Verdict.PASS)


@pytest.fixture
def go():
    """What a callback waits for."""
    event = threading.Event()
    yield event
    event.set()


def by_the_deadline(future, deadline):
    answer = future.result(PATIENCE)
    return isinstance(answer.error, DeadlineExceededError) and deadline <= answer.seconds < deadline + 2.0


@pytest.mark.parametrize("where", ["callback", "done-callback", "log handler"])
@pytest.mark.parametrize("in_order", [True, False])
def test_what_hangs_delays_no_error_of_another_frame(held, go, where, in_order):
    engine, network = held
    network.open.set()
    seen = []

    def consume(answer):
        seen.append(answer)
        if where == "callback" and answer.id == 0:
            go.wait(PATIENCE)

    handler = logging.Handler()
    handler.emit = lambda record: go.wait(PATIENCE)
    if where == "log handler":
        logging.getLogger("sprfast.line").addHandler(handler)
    try:
        with Line(engine, consume, in_order=in_order) as line:
            if where == "log handler":
                line.submit(b"", 0)
            else:
                first = fill(line, network, 1)[0]
                if where == "done-callback":
                    first.add_done_callback(lambda future: go.wait(PATIENCE))
                network.open.set()
            assert eventually(lambda: len(seen) == 1)
            network.open.clear()
            late = line.submit(frame(1), 1, channel_order="rgb", deadline=SOON)
            called = threading.Event()
            late.add_done_callback(lambda future: called.set())
            assert by_the_deadline(late, SOON)
            assert called.wait(PATIENCE)
            if where == "done-callback":
                assert eventually(lambda: len(seen) == 2)
            network.open.set()
            go.set()
            assert line.drain(PATIENCE)
            assert seen[1] is late.result()
    finally:
        logging.getLogger("sprfast.line").removeHandler(handler)


def test_no_pass_is_late_behind_a_done_callback_that_sleeps(engine, passing):
    seen = []

    def consume(answer):
        seen.append((answer.verdict, time.monotonic() - answer.trigger_time))

    with Line(engine, consume) as line:
        futures = []
        for number in range(3):
            futures.append(line.submit(passing, number, channel_order="rgb", deadline=SOON))
            futures[-1].add_done_callback(lambda future: time.sleep(2 * SOON))
        assert line.drain(PATIENCE)
    assert [after for verdict, after in seen if verdict is Verdict.PASS and after > SOON] == []
    assert len(seen) == 3


def test_no_pass_is_late_behind_a_callback_that_sleeps(engine, passing):
    seen = []

    def consume(answer):
        seen.append((answer, time.monotonic() - answer.trigger_time))
        time.sleep(2 * SOON)

    with Line(engine, consume) as line:
        futures = [line.submit(passing, number, channel_order="rgb", deadline=SOON) for number in range(3)]
        answers = [future.result(PATIENCE) for future in futures]
        assert line.drain(PATIENCE)
    assert [answer for answer, _ in seen] == answers  # one and the same
    assert [after for answer, after in seen if answer.verdict is Verdict.PASS and after > SOON] == []
    assert all(isinstance(answer.error, DeadlineExceededError) for answer in answers[1:])


def test_many_done_callbacks_that_hang_hold_no_other(held, go):
    engine, network = held
    network.open.set()
    called = []
    with Line(engine) as line:
        futures = fill(line, network, 5)
        for future in futures[:4]:
            future.add_done_callback(lambda future: go.wait(PATIENCE))
        futures[4].add_done_callback(called.append)
        network.open.set()
        assert eventually(lambda: called and line.health().unanswered == 4)
        go.set()
        assert line.drain(PATIENCE)
    assert eventually(lambda: sum(thread.name == "sprfast-done-callbacks" for thread in threading.enumerate()) == 0)


@pytest.mark.parametrize("where", ["callback", "done-callback"])
def test_a_callback_that_never_returns_leaves_no_future_open_after_close(held, go, where, passing):
    engine, network = held
    network.open.set()
    hang = lambda given: go.wait(PATIENCE)  # noqa: E731
    seen = []

    def consume(answer):
        seen.append(answer)
        if where == "callback":
            go.wait(PATIENCE)

    line = Line(engine, consume)
    futures = fill(line, network, 3)
    if where == "done-callback":
        futures[0].add_done_callback(hang)
    network.open.set()
    assert eventually(lambda: len(seen) >= 1)
    futures.append(line.submit(passing, "decided", channel_order="rgb"))
    assert eventually(lambda: futures[3].done() or not entry_of(line, "decided").open)
    line.close(0.05)
    assert all(future.done() for future in futures)
    if where == "callback":
        assert [type(future.result().error) for future in futures[1:]] == [ClosedError] * 3
        go.set()
        assert eventually(lambda: len(seen) == 4)
        assert seen == [future.result() for future in futures]


def test_a_frame_that_waits_for_room_is_answered_at_its_deadline(held):
    engine, network = held
    network.open.set()
    with Line(engine, capacity=1, timeout=PATIENCE) as line:
        fill(line, network, 1)
        late = line.submit(frame(1), 1, channel_order="rgb", deadline=SOON)
        assert late.result(PATIENCE).seconds < SOON + 2.0
        network.open.set()


@pytest.mark.parametrize("endless", [1e300, float(2**60)])
def test_times_without_end_are_no_failure(held, endless):
    engine, network = held
    network.open.set()
    with Line(engine, capacity=1, timeout=endless, max_wait=0.0, deadline=endless) as line:
        futures = fill(line, network, 1)
        threading.Timer(0.05, network.open.set).start()
        futures.append(line.submit(frame(1), 1, channel_order="rgb"))
        assert [future.result(PATIENCE).error for future in futures] == [None, None]
        assert line.health().reasons == ()
        assert line.drain(float("inf"))
        assert line.drain(10**400)


@pytest.mark.parametrize("name", ["trigger_time", "deadline"])
@pytest.mark.parametrize("value", [10**400, 10**5000, -(10**400), float("inf")], ids=["400", "5000", "-400", "inf"])
def test_numbers_that_no_clock_has_are_not_taken(engine, name, value):
    with Line(engine) as line:
        with pytest.raises(InputError, match=f"^{name}: .{{1,50}} is not allowed"):
            line.submit(frame(1), 1, channel_order="rgb", **{name: value})
        assert line.health().refused == 1


@pytest.mark.parametrize("value", [10**400, -1, float("nan"), True, "1"])
@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("timeout", Line),
        ("max_wait", Line),
        ("deadline", Line),
        ("timeout", lambda _, **given: Stream(None, **given)),
        ("period", lambda _, **given: Stream(None, **given)),
        ("first_wait", lambda _, **given: Stream(None, **given)),
        ("give_up", lambda _, **given: Stream(None, **given)),
        ("poll", lambda _, **given: FolderWatch(".", **given)),
    ],
)
def test_seconds_that_no_clock_has_are_refused(engine, name, made, value):
    with pytest.raises(InputError, match=f"^{name}: .{{1,50}} is not allowed, expected seconds"):
        made(engine, **{name: value})
