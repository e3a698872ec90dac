"""The interface of a sink, and of the connection inside one."""

from __future__ import annotations

from typing import Protocol

from sprfast.line.answer import Answer
from sprfast.line.sinks.message import Message


class Sink(Protocol):
    """Where answers go."""

    def deliver(self, answer: Answer) -> None:
        """Take an answer; returns at once."""
        ...

    def fault(self) -> str:
        """Why answers do not arrive, in a sentence; "" while they do."""
        ...

    def close(self, timeout: float = 2.0) -> None:
        """Give out what waits, for up to `timeout` seconds, say that the station is not ready, and
        end.
        """
        ...


class Connection(Protocol):
    """What a `Courier` drives, from one thread only. Every method but `abort` may raise: a
    SinkError where an answer was not taken and the connection stands, anything else where it is
    lost.
    """

    name: str  # fit to be shown
    interval: float  # seconds after which `idle` is due
    takes_late: bool  # messages that name their part, so that a late one is told as an ERROR

    def open(self) -> None:
        """Connect, and put the outside into its rest position: not ready, no part passes."""
        ...

    def send(self, message: Message) -> None:
        """Give out an answer, and return when it has arrived."""
        ...

    def idle(self) -> None:
        """Show that the station lives, and find out whether the other side does."""
        ...

    def rest(self) -> None:
        """The rest position, before a wanted end."""
        ...

    def abort(self) -> None:
        """End at once; what has not left yet never does. Never raises."""
        ...
