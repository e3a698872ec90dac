"""Where the done-callbacks of a line's futures run."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from sprfast.line.answer import DoneCallback, Entry
from sprfast.line.telling import say

HELD = 0.02  # seconds of one frame's callbacks after which those of the next ones get another thread


class DoneCallbacks:
    """A thread that runs done-callbacks, and another one in its place when a callback holds it.

    The threads held at one time are at most as many as frames in the line, since a frame stays
    there until its callbacks have returned.

    Args:
        finished: called with each entry when its callbacks have returned.
    """

    def __init__(self, finished: Callable[[Entry], object]) -> None:
        self._finished = finished
        self._queue: queue.SimpleQueue[tuple[Entry, list[DoneCallback]] | None] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._current: threading.Thread | None = None  # made for the first callback
        self._since: float | None = None  # seconds of `time.monotonic`, while it runs callbacks

    def put(self, entry: Entry, callbacks: list[DoneCallback]) -> None:
        """Have them run; returns at once."""
        self._queue.put((entry, callbacks))
        if self._current is None:
            self.watch()

    def watch(self) -> None:
        """Let another thread go on, where callbacks wait and none takes them."""
        if self._queue.empty():
            return
        with self._lock:
            since = self._since
            held = since is not None and time.monotonic() - since > HELD
            if self._current is None or held or not self._current.is_alive():
                self._since = None
                self._current = threading.Thread(target=self._run, name="sprfast-done-callbacks", daemon=True)
                self._current.start()

    def close(self) -> None:
        """End the thread when it has run what waits."""
        self._queue.put(None)

    def join(self, timeout: float) -> None:
        """Wait for that, unless this is that thread."""
        if self._current not in (None, threading.current_thread()):
            self._current.join(timeout)

    def _run(self) -> None:
        this = threading.current_thread()
        while self._current is this and (taken := self._queue.get()) is not None:
            self._since = time.monotonic()
            entry, callbacks = taken
            for callback in callbacks:
                try:
                    callback(entry.future)
                except BaseException as error:
                    say(logging.ERROR, "a done-callback failed at frame %s", entry.claim.text, error=error)
            with self._lock:
                if self._current is this:
                    self._since = None
            self._finished(entry)
            del taken, entry, callbacks, callback  # the frame's maps, while it waits for another one
