"""Trying again after longer and longer waits, which another thread or a signal handler can end."""

from __future__ import annotations

import math
import time

from sprfast.errors import CameraError, InputError

SLICE = 0.05  # seconds between two looks at whether it was closed


class Retry:
    """When to try again, and when to stop.

    Args:
        first: seconds after the first failure.
        longest: seconds that the wait doubles up to.
        give_up: seconds of failures after which there is no further attempt; None: it goes on for
            ever.

    Raises:
        InputError: an argument is not allowed.
    """

    def __init__(self, first: float, longest: float, give_up: float | None) -> None:
        if not 0.0 < first <= longest < math.inf:
            raise InputError(
                f"first_wait, longest_wait: {first!r}, {longest!r} are not allowed, expected 0 < first_wait <= "
                f"longest_wait"
            )
        if give_up is not None and not 0.0 <= give_up < math.inf:
            raise InputError(f"give_up: {give_up!r} is not allowed, expected seconds, 0 or more, or None")
        self._first, self._longest, self._give_up = first, longest, give_up
        self._attempts, self._since = 0, 0.0
        self._closed = False

    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self._attempts > 0

    def failed(self, error: CameraError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            CameraError: it is time to give up.
        """
        now = time.monotonic()
        if not self._attempts:
            self._since = now
        left = math.inf if self._give_up is None else self._since + self._give_up - now
        if left <= 0:
            raise CameraError(f"{error}; given up after {now - self._since:.3g} s") from error
        wait = min(self._longest, self._first * 2.0 ** min(self._attempts, 60))
        self._attempts += 1
        return min(wait, left)

    def succeeded(self) -> None:
        """The next failure is a first one."""
        self._attempts = 0

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
