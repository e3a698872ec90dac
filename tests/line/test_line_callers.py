"""What the caller's own code may do on a line's threads: whatever is raised there, each frame has
its one answer, and the line goes on.
"""

import asyncio
import logging
import threading
from concurrent.futures import CancelledError, Future, InvalidStateError

import pytest

from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, InputError
from sprfast.line import Line
from sprfast.line.health import State
from sprfast.line.in_flight import InFlight
from support.line_cases import PATIENCE, errors_of, eventually, fill, frame

ENDS = [SystemExit(3), KeyboardInterrupt(), CancelledError(), asyncio.CancelledError(), GeneratorExit()]
by_type = pytest.mark.parametrize("end", ENDS, ids=lambda end: f"{type(end).__module__}.{type(end).__name__}")


def raises(error):
    def call(*_, **__):
        raise error

    return call


@by_type
def test_a_callback_that_ends_its_thread_costs_no_answer(engine, end):
    seen = []

    def consume(answer):
        seen.append(answer.id)
        raise end

    with Line(engine, consume) as line:
        futures = [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(3)]
        assert errors_of(futures) == [type(None)] * 3
        assert line.drain(PATIENCE)
        assert (sorted(seen), line.health().callback_failures) == ([0, 1, 2], 3)


@by_type
def test_a_done_callback_that_ends_its_thread_costs_no_answer(held, end):
    engine, network = held
    seen = []
    network.open.set()
    with Line(engine, lambda answer: seen.append(answer.id)) as line:
        futures = fill(line, network, 3)
        called = []
        futures[0].add_done_callback(raises(end))
        futures[0].add_done_callback(called.append)
        network.open.set()
        assert errors_of(futures) == [type(None)] * 3
        assert line.drain(PATIENCE)
        assert line.health().reasons == ()
    assert (sorted(seen), called) == ([0, 1, 2], [futures[0]])


@by_type
@pytest.mark.parametrize("where", ["prepare", "score", "self_test"])
def test_a_predictor_that_ends_its_thread_costs_one_answer(small_model, where, end):
    engine = Engine(small_model)
    real = getattr(engine, where)
    setattr(engine, where, raises(end))
    line = Line(engine)
    if where == "self_test":
        with pytest.raises(BackendError, match=type(end).__name__):
            line.wait_until_started()
        assert line.health().state is State.FAILED
    else:
        bad = line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE)
        assert type(end).__name__ in str(bad.error) or "self-test" in str(bad.error)
        setattr(engine, where, real)
    assert line.submit(frame(2), 2, channel_order="rgb").result(PATIENCE).id == 2
    line.close()


def test_a_predictor_with_too_few_results_costs_those_answers(engine, monkeypatch):
    with Line(engine) as line:
        monkeypatch.setattr(Engine, "score", lambda self, prepared: [])
        assert errors_of([line.submit(frame(1), 1, channel_order="rgb")]) == [BackendError]
        monkeypatch.undo()
        assert errors_of([line.submit(frame(2), 2, channel_order="rgb")]) == [type(None)]


@by_type
def test_a_log_handler_that_raises_costs_no_answer(engine, end, caplog, tmp_path):
    handler = logging.Handler()
    handler.emit = raises(end)
    logger = logging.getLogger("sprfast.line")
    logger.addHandler(handler)
    try:
        with Line(engine, raises(ValueError())) as line:
            bad = line.submit(tmp_path / "missing.png", 1)
            strange = line.submit(b"", 2)
            good = line.submit(frame(3), 3, channel_order="rgb")
            assert errors_of([bad, strange, good]) == [InputError, InputError, type(None)]
            assert line.drain(PATIENCE)
            assert line.health().callback_failures == 3
    finally:
        logger.removeHandler(handler)


def test_an_error_without_a_text_costs_no_answer(engine, monkeypatch):
    class WordlessError(Exception):
        __str__ = __repr__ = raises(SystemExit())

    with Line(engine) as line:
        monkeypatch.setattr(Engine, "prepare", raises(WordlessError()))
        answer = line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE)
        assert "WordlessError" in answer.result.reason
        monkeypatch.undo()

        class WordlessFaultError(InputError):
            __str__ = raises(ValueError())

        answer = line.submit(None, 2, fault=WordlessFaultError()).result(PATIENCE)
        assert answer.result.reason == "WordlessFaultError"
        assert errors_of([line.submit(frame(3), 3, channel_order="rgb")]) == [type(None)]


@pytest.mark.parametrize("fault", ["no picture", ValueError("no picture")])
def test_a_fault_that_is_none_of_ours_is_not_taken(engine, fault):
    with Line(engine) as line, pytest.raises(InputError, match=r"fault: .* is not allowed"):
        line.submit(None, 1, fault=fault)


class Part:
    """An id whose hash, comparison and text may change or fail."""

    def __init__(self, number):
        self.number, self.broken = number, False

    def __hash__(self):
        return hash(self.number) if not self.broken else raises(SystemExit())()

    def __eq__(self, other):
        if self.broken:
            raise SystemExit
        return isinstance(other, Part) and self.number == other.number

    def __str__(self):
        return f"part {self.number}" if not self.broken else raises(SystemExit())()


@pytest.mark.parametrize("change", ["number", "broken"])
def test_an_id_that_changes_is_answered_all_the_same(held, change):
    engine, network = held
    network.open.set()
    seen = []
    with Line(engine, lambda answer: seen.append(answer.id), deadline=PATIENCE) as line:
        fill(line, network, 1)
        parts = [Part(number) for number in range(10, 13)]
        futures = [line.submit(frame(part.number), part, channel_order="rgb") for part in parts[:2]]
        futures.append(line.submit(b"", parts[2]))
        with pytest.raises(InputError, match=r"id <.*Part.*is in the line"):
            line.submit(frame(1), Part(11), channel_order="rgb")
        for part in parts:
            setattr(part, change, 7)
        network.open.set()
        assert errors_of(futures) == [type(None), type(None), InputError]
        assert line.drain(PATIENCE)
    assert {id(each) for each in seen if isinstance(each, Part)} == {id(part) for part in parts}
    assert len(seen) == 4


def test_ids_that_cannot_be_compared_are_not_taken(engine):
    class Odd(Part):
        __hash__ = Part.__hash__

        def __eq__(self, other):
            raise ValueError("no")

    with Line(engine) as line:
        first = line.submit(frame(1), Odd(1), channel_order="rgb")
        with pytest.raises(InputError, match="id: Odd cannot be compared"):
            line.submit(frame(1), Odd(1), channel_order="rgb")
        assert first.result(PATIENCE).error is None
        assert line.drain(PATIENCE)


def test_two_equal_ids_at_once_are_one(engine):
    taken, refused = [], []
    with Line(engine) as line:

        def produce(number):
            try:
                taken.append(line.submit(frame(1), ("part", number), channel_order="rgb"))
            except InputError:
                refused.append(number)

        threads = [threading.Thread(target=produce, args=(number,)) for number in range(8) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(taken), sorted(refused)) == (8, list(range(8)))


@pytest.mark.parametrize("force", [False, True])
def test_the_holder_of_a_future_cannot_answer_for_the_line(held, force):
    engine, network = held
    network.open.set()
    seen = []
    with Line(engine, seen.append) as line:
        futures = fill(line, network, 2)
        if force:
            Future.set_result(futures[0], "PASS")
        else:
            for change in (futures[0].set_result, futures[0].set_exception):
                with pytest.raises(InvalidStateError):
                    change(None)
        network.open.set()
        assert futures[1].result(PATIENCE).error is None
        assert line.drain(PATIENCE)
        assert [answer.id for answer in seen] == [0, 1]
        assert futures[0].result() == "PASS" if force else futures[0].result().id == 0


def test_done_callbacks_are_called_as_those_of_any_future(engine):
    async def ask():
        return await asyncio.wrap_future(line.submit(frame(1), 1, channel_order="rgb"))

    with Line(engine) as line:
        assert asyncio.run(ask()).id == 1
        future = line.submit(frame(2), 2, channel_order="rgb")
        future.result(PATIENCE)
        assert line.drain(PATIENCE)
        here = []
        future.add_done_callback(lambda given: here.append((given, threading.current_thread())))
        assert here == [(future, threading.current_thread())]
        future.add_done_callback(raises(ValueError()))  # logged, as of any future


# Threads that fail all the same


@pytest.mark.parametrize("method", ["take_waiting", "take_batch", "take_decided", "take_late"])
def test_a_thread_that_fails_is_started_again_and_health_says_so(engine, monkeypatch, method):
    failures = [SystemExit(), MemoryError()]
    real = getattr(InFlight, method)

    def fails(in_flight, *given):
        taken = real(in_flight, *given) if method in ("take_waiting", "take_batch") else None
        if failures:
            raise failures.pop(0)
        return taken or real(in_flight, *given)

    with Line(engine) as line:
        monkeypatch.setattr(InFlight, method, fails)
        line.submit(frame(0), 0, channel_order="rgb").result(PATIENCE)  # the threads were in the real one
        for number in range(1, 3):
            answer = line.submit(frame(number), number, channel_order="rgb").result(PATIENCE)
            if method in ("take_waiting", "take_batch"):  # what the thread had in hand is ERROR at once
                assert type(answer.error) is BackendError
        assert eventually(lambda: not failures)
        assert eventually(lambda: line.health().state is State.DEGRADED)
        assert eventually(lambda: "2 times; last: MemoryError" in line.health().reasons[0])
        assert errors_of([line.submit(frame(3), 3, channel_order="rgb")]) == [type(None)]


def test_a_thread_that_is_gone_is_missed(engine):
    with Line(engine) as line:
        gone = threading.Thread(target=int)
        gone.start()
        gone.join()
        line._threads._threads["sprfast-delivery"] = gone
        assert eventually(lambda: line.health().state is State.DEGRADED)
        assert "the thread sprfast-delivery failed and was started again" in line.health().reasons[0]
        assert errors_of([line.submit(frame(1), 1, channel_order="rgb")]) == [type(None)]


def test_a_thread_that_fails_on_and_on_fails_the_line(engine, monkeypatch):
    line = Line(engine)
    line.wait_until_started()
    monkeypatch.setattr(InFlight, "take_batch", raises(SystemExit()))
    line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE)  # the thread was in the real one
    assert eventually(lambda: line.health().state is State.FAILED)
    assert "sprfast-network failed 10 times" in line.health().reasons[0]
    assert errors_of([line.submit(frame(2), 2, channel_order="rgb")]) == [BackendError]
    monkeypatch.undo()
    line.close()
