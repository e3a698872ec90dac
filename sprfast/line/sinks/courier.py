"""The thread of a sink: it keeps the connection, and gives out one answer at a time by its
deadline.
"""

from __future__ import annotations

import collections
import logging
import threading
import time

from sprfast.errors import SinkError
from sprfast.line.answer import Answer
from sprfast.line.sinks.message import Message, message
from sprfast.line.sinks.sink import Connection
from sprfast.line.telling import described, say
from sprfast.system.redaction import redacted

_log = logging.getLogger("sprfast.line.sinks")

CAPACITY = 256  # answers that wait; the oldest is lost to a newer one
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds between two attempts to connect


class Courier:
    """A `Sink` over a connection.

    An answer goes out once or not at all, and as what it is only on a connection that stood when
    the answer came, within its time. Any other goes out as ERROR where the message names its part,
    and else not at all: the controller's own timer rejects the part then. One whose arrival is not
    known is not repeated.

    Args:
        within: seconds from `deliver` in which an answer must have arrived.
    """

    def __init__(self, connection: Connection, within: float) -> None:
        self._connection, self._within = connection, within
        self._waiting: collections.deque[Message] = collections.deque()
        self._news = threading.Condition()
        self._fault = f"{connection.name}: is not connected yet"
        self._connected_at = 0.0
        self._closing_by: float | None = None  # when to stop at the latest; None: it is not being closed
        self._thread = threading.Thread(target=self._run, name="sprfast-sink", daemon=True)
        self._thread.start()

    def deliver(self, answer: Answer) -> None:
        """Take an answer; returns at once."""
        told = message(answer, self._within)
        with self._news:
            if self._closing_by is not None:
                self._fault = f"{self._connection.name}: is closed, and did not give out the result of {told.id}"
                return
            if len(self._waiting) >= CAPACITY:
                lost = self._waiting.popleft()
                self._fault = f"{self._connection.name}: {CAPACITY} results wait, that of {lost.id} was dropped"
            self._waiting.append(told)
            self._news.notify()

    def fault(self) -> str:
        """Why answers do not arrive, in a sentence; "" while they do."""
        return self._fault

    def close(self, timeout: float = 2.0) -> None:
        """Give out what waits, for up to `timeout` seconds, say that the station is not ready, and
        end; may be called again.
        """
        with self._news:
            if self._closing_by is None:
                self._closing_by = time.monotonic() + timeout
                self._news.notify()
        self._thread.join(timeout + self._within)
        if self._thread.is_alive():
            say(
                logging.WARNING,
                "%s: did not end within %.3g s",
                self._connection.name,
                timeout + self._within,
                log=_log,
            )

    def _run(self) -> None:
        wait = FIRST_WAIT
        while self._closing_by is None:
            try:
                self._connection.open()
                self._connected()
                wait = FIRST_WAIT
                self._serve()
                self._connection.rest()
            except Exception as error:  # whatever a library raises
                self._lost(error)
            finally:
                self._connection.abort()
            with self._news:
                self._news.wait_for(lambda: self._closing_by is not None, wait)
            wait = min(LONGEST_WAIT, 2 * wait)
        if self._waiting:
            say(
                logging.WARNING,
                "%s: closed with %d results not given out",
                self._connection.name,
                len(self._waiting),
                log=_log,
            )

    def _serve(self) -> None:
        idled = 0.0
        while True:
            now = time.monotonic()
            if now >= idled + self._connection.interval:
                self._connection.idle()
                idled = now
            told = self._next(idled + self._connection.interval)
            if told is not None:
                self._give_out(told)
            elif self._closing_by is not None:
                return

    def _next(self, until: float) -> Message | None:
        """The oldest that waits; None: there is none until then, or it is time to end."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closing_by is not None, until - time.monotonic())
            if self._closing_by is not None and time.monotonic() > self._closing_by:
                return None
            return self._waiting.popleft() if self._waiting else None

    def _give_out(self, told: Message) -> None:
        late = told.taken < self._connected_at or time.monotonic() > told.due
        if late:
            told = told.late()
            if not self._connection.takes_late:
                self._troubled(f"the result of {told.id} was late and not given out")
                return
        try:
            self._connection.send(told)
        except SinkError as error:
            self._troubled(str(error))
            return
        if late or time.monotonic() > told.due:
            self._troubled(f"the result of {told.id} was late")
        elif self._fault:
            self._set_fault("")

    def _connected(self) -> None:
        self._connected_at = time.monotonic()
        self._set_fault("")
        say(logging.INFO, "%s: connected", self._connection.name, log=_log)

    def _lost(self, error: Exception) -> None:
        said = redacted(next(iter(described(error).splitlines()), "")) or type(error).__name__
        self._troubled(f"is not connected ({said})")

    def _troubled(self, what: str) -> None:
        said = f"{self._connection.name}: {what}"
        if said != self._fault:
            say(logging.WARNING, "%s", said, log=_log)
        self._set_fault(said)

    def _set_fault(self, said: str) -> None:
        with self._news:
            self._fault = said
