"""Trying again after longer and longer waits, which another thread or a signal handler can end."""

from __future__ import annotations

import math
import time

from sprfast.config import require
from sprfast.errors import CameraError
from sprfast.line.durations import seconds

SLICE = 0.05  # seconds between two looks at whether it was closed


class Retry:
    """When to try again, and when to stop: `first` seconds after the first failure, then twice as
    long each time up to `longest`, until there were failures for `give_up` seconds (None: for
    ever).

    Raises:
        InputError: an argument is not allowed.
    """

    def __init__(self, first: float, longest: float, give_up: float | None) -> None:
        self._first = seconds("first_wait", first, zero=False)
        self._longest = seconds("longest_wait", longest, zero=False)
        ordered = self._first <= self._longest
        require(ordered, "first_wait, longest_wait", (first, longest), "0 < first_wait <= longest_wait")
        self._give_up = None if give_up is None else seconds("give_up", give_up, zero=True)
        self.failures, self._since = 0, 0.0  # attempts in a row that failed, and when the first of them did
        self._closed = False

    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def failed(self, error: CameraError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            CameraError: it is time to give up.
        """
        now = time.monotonic()
        if not self.failures:
            self._since = now
        left = math.inf if self._give_up is None else self._since + self._give_up - now
        if left <= 0:
            raise CameraError(f"{error}; given up after {now - self._since:.3g} s") from error
        wait = min(self._longest, self._first * 2.0 ** min(self.failures, 60))
        self.failures += 1
        return min(wait, left)

    def sleep(self, seconds: float) -> None:
        """Wait, unless closed."""
        until = time.monotonic() + seconds
        while not self._closed and (left := until - time.monotonic()) > 0:
            time.sleep(min(SLICE, left))

    def close(self) -> None:
        """End all waits; a plain assignment, since a lock could be held by what a signal handler
        interrupts.
        """
        self._closed = True
