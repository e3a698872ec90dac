"""Signal handlers that use a line, Ctrl-C inside of it, and forks of its process."""

import os
import signal
import sys
import threading
import time

import pytest

from sprfast.errors import ClosedError, InputError
from sprfast.line import Line
from sprfast.line.health import State
from support.line_cases import PATIENCE, errors_of, eventually, fill, frame


class Interrupted:
    """Raises SIGALRM in the main thread at a step of a function, counted from its first line on.

    Steps back are none: at the end of a `with` the tracer is called where Python looks for no
    signals, before the lock is free.
    """

    def __init__(self, function, step):
        self._code, self._left, self._line = function.__code__, step, 0

    def __enter__(self):
        sys.settrace(self._trace)

    def __exit__(self, *_):
        sys.settrace(None)

    def _trace(self, frame, event, _):
        if frame.f_code is not self._code:
            return self._trace
        forward, self._line = event == "line" and frame.f_lineno > self._line, frame.f_lineno
        self._left -= forward
        if forward and self._left <= 0:
            sys.settrace(None)
            frame.f_trace = None
            signal.raise_signal(signal.SIGALRM)
        return self._trace


@pytest.fixture
def handled():
    """Sets what SIGALRM does."""
    before = signal.getsignal(signal.SIGALRM)
    yield lambda call: signal.signal(signal.SIGALRM, lambda *_: call())
    signal.signal(signal.SIGALRM, before)


def raise_(error):
    raise error


STEPS = range(1, 14)  # of `admit`, and more than it has


@pytest.mark.parametrize("what", ["drain", "submit", "health", "close"])
@pytest.mark.parametrize("function", ["admit", "_insert", "_decide", "put"])
def test_a_signal_handler_may_use_the_line_that_it_interrupts(engine, handled, what, function):
    """Without a second thread that would let go of a lock, a plain one would never be free."""
    uses = {
        "drain": lambda: line.drain(0.0),
        "submit": lambda: line.submit(frame(1), 2, channel_order="rgb"),
        "health": lambda: line.health(),  # noqa: PLW0108
        "close": lambda: line.close(0.0),
    }
    handled(uses[what])
    for step in (2, 4, 8):
        with Line(engine, deadline=PATIENCE, capacity=2) as line:
            image, order = (b"", None) if function == "_decide" else (frame(1), "rgb")
            with Interrupted(getattr(type(line._in_flight), function), step):
                try:
                    future = line.submit(image, 1, channel_order=order)
                except ClosedError:
                    assert what in ("drain", "close")
                    future = None
            assert line.drain(PATIENCE)
            assert future is None or future.done()
            assert len(line._in_flight._to_deliver) == 0


def test_ctrl_c_in_submit_leaves_nothing_that_blocks(engine, handled):
    """At any step, in order, without deadlines."""
    handled(lambda: raise_(KeyboardInterrupt))
    order = []
    interrupted = 0
    with Line(engine, lambda answer: order.append(answer.id), in_order=True) as line:
        for function in (type(line)._take, type(line._in_flight).admit, type(line._in_flight).put):
            for step in STEPS:
                try:
                    with Interrupted(function, step):
                        line.submit(frame(1), (function.__name__, step), channel_order="rgb")
                except KeyboardInterrupt:
                    interrupted += 1
                after = line.submit(frame(2), (function.__name__, step, "after"), channel_order="rgb")
                assert after.result(PATIENCE).error is None
        assert line.drain(PATIENCE)
        assert line.health().unanswered == 0
    assert interrupted > 15
    assert len(order) == len(set(order))


def test_an_id_that_was_interrupted_before_it_was_taken_may_come_again(engine, handled):
    handled(lambda: raise_(KeyboardInterrupt))
    with Line(engine) as line:
        with pytest.raises(KeyboardInterrupt), Interrupted(type(line._in_flight).admit, 3):
            line.submit(frame(1), 1, channel_order="rgb")
        assert line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE).error is None


def test_ctrl_c_while_the_image_is_copied_is_an_error_for_its_id(engine, handled, monkeypatch):
    from sprfast.line import line as module

    seen = []
    with Line(engine, seen.append) as line:
        monkeypatch.setattr(module, "owned", lambda *_: raise_(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            line.submit(frame(1), 1, channel_order="rgb")
        assert eventually(lambda: seen)
        assert isinstance(seen[0].error, InputError)
        assert "`submit` was interrupted (KeyboardInterrupt)" in str(seen[0].error)


def test_ctrl_c_while_submit_waits_for_room(held, handled):
    engine, network = held
    network.open.set()
    handled(lambda: raise_(KeyboardInterrupt))
    with Line(engine, capacity=1, timeout=PATIENCE) as line:
        fill(line, network, 1)
        main = threading.get_ident()
        threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGALRM)).start()
        with pytest.raises(KeyboardInterrupt):
            line.submit(frame(1), 1, channel_order="rgb")
        network.open.set()
        assert line.submit(frame(1), 1, channel_order="rgb").result(PATIENCE).error is None


def test_in_a_fork_nothing_hangs_whatever_was_locked(held):
    """The child has the locks as they were, and nobody who would let go of them."""
    engine, network = held
    network.open.set()
    with Line(engine) as line:
        fill(line, network, 2)
        locks = [line._in_flight._lock, line._counters._lock, line._answers._lock, line._in_flight._known._lock]
        locked, go = threading.Event(), threading.Event()

        def hold():
            for lock in locks:
                lock.acquire()
            locked.set()
            go.wait(PATIENCE)
            for lock in locks:
                lock.release()

        holder = threading.Thread(target=hold)
        holder.start()
        locked.wait(PATIENCE)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for call in (
                    lambda: line.drain(1.0),
                    lambda: line.submit(frame(3), 3, channel_order="rgb"),
                    line.wait_until_started,
                    lambda: line.run([]),
                    lambda: line.swap(engine),
                ):
                    with pytest.raises(ClosedError, match="was made in process"):
                        call()
                health = line.health()
                line.close()
                code = 7 if (health.state, health.taken) == (State.CLOSED, 2) else 2
            finally:
                os._exit(code)
        until = time.monotonic() + PATIENCE / 4
        ended = 0
        while not ended and time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        go.set()
        holder.join()
        assert ended
        assert os.waitstatus_to_exitcode(status) == 7
        network.open.set()
        assert errors_of([line.submit(frame(4), 4, channel_order="rgb")]) == [type(None)]
