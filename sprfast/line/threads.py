"""The threads of a line, each of which goes on after a failure, and is missed when it is gone."""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from sprfast.errors import BackendError
from sprfast.line.telling import described, say

PAUSE = 0.01  # seconds before a thread that failed goes on
ALLOWED = 10  # failures of one thread, after which the line fails
CLOCK = "sprfast-clock"  # on which nothing is logged

Lost = Callable[[BackendError], object]


class Threads:
    """Daemon threads by name.

    Args:
        stopped: whether threads may end.
        fail: called when a thread has failed too often.
    """

    def __init__(self, stopped: Callable[[], bool], fail: Callable[[BackendError], object]) -> None:
        self._stopped, self._fail = stopped, fail
        self._runs: dict[str, tuple[Callable[[], object], Lost]] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._failures: collections.Counter[str] = collections.Counter()
        self._said: dict[str, str] = {}  # of the last failure of each
        self._lock = threading.RLock()

    def add(self, name: str, run: Callable[[], object], lost: Lost = lambda error: None) -> None:
        """A thread that calls `run` until that returns.

        Args:
            lost: called when it failed, to decide what it had in hand.
        """
        self._runs[name] = (run, lost)
        self._start(name)

    def watch(self) -> None:
        """Start again what has ended and should not have."""
        for name, thread in list(self._threads.items()):
            if not thread.is_alive():
                with self._lock:
                    if self._threads[name] is thread and not self._stopped():
                        self._note(name, "it ended")
                        with contextlib.suppress(RuntimeError):  # there are too many threads now: at the next look
                            self._start(name, "it ended")

    def reasons(self) -> list[str]:
        """What somebody should look at, a sentence each."""
        return [
            f"the thread {name} failed and was started again, {self._failures[name]} times; last: {said}"
            for name, said in sorted(self._said.items())
        ]

    def join(self, timeout: float) -> None:
        """Wait for all but the calling one, up to `timeout` seconds together."""
        until = time.monotonic() + timeout
        for thread in self._threads.values():
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))

    def _start(self, name: str, before: str = "") -> None:
        thread = threading.Thread(target=self._run, args=(name, before), name=name, daemon=True)
        thread.start()
        self._threads[name] = thread

    def _run(self, name: str, failed: str) -> None:
        while True:
            if failed and name != CLOCK:
                say(logging.ERROR, "the thread %s failed and was started again (%s)", name, failed)
            try:
                self._runs[name][0]()
                return
            except BaseException as error:
                failed = f"{type(error).__name__}: {described(error)}"
                self._note(name, failed)
            time.sleep(PAUSE)

    def _note(self, name: str, said: str) -> None:
        with self._lock:
            self._failures[name] += 1
            self._said[name] = said
            failures = self._failures[name]
        self._runs[name][1](BackendError(f"the thread {name} of the line failed ({said})"))
        if failures >= ALLOWED:
            self._fail(BackendError(f"the line has failed: its thread {name} failed {failures} times, last: {said}"))
