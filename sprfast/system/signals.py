"""Signals that stop a long run: the first one asks for an orderly end, a second one acts as it did
before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import termios
from collections.abc import Callable, Iterator
from typing import Any


class Stop:
    """The signal that asked for an end, if any."""

    signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """0, or 128 + n after signal n."""
        return 128 + self.signal if self.signal else 0


@contextlib.contextmanager
def stop_signals(*closing: Callable[[], object]) -> Iterator[Stop]:
    """Turn the first SIGTERM, SIGINT or SIGHUP into a request; outside of the main thread signals
    stay the caller's affair, and a SIGHUP that is ignored, as under `nohup`, stays so.

    Args:
        closing: called at the request, in the main thread between any two steps of what it does;
            such as a source's `close`.
    """
    stop = Stop()
    before: dict[signal.Signals, Any] = {}

    def request(number: int, _: object) -> None:
        stop.signal = signal.Signals(number)
        if stop.signal is signal.SIGHUP:
            _leave_terminal()
        for each, handler in before.items():
            signal.signal(each, handler)
        for call in closing:
            call()

    try:
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN:
                before[each] = signal.signal(each, request)
    except ValueError:  # not the main thread
        yield stop
        return
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _leave_terminal() -> None:
    """Let nothing fail that is still printed where the terminal is gone."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
