"""What all viewers of a page see, made once for all of them, a few times a second."""

from __future__ import annotations

import asyncio
import collections
import json
from collections.abc import AsyncGenerator
from typing import Any

from sprfast.errors import OverloadedError
from sprfast.line.station.state import answers, describe
from sprfast.line.station.station import Station

TICK = 0.1  # seconds between two looks at the answers
STATE_TICKS = 5  # from one state to the next
VIEWERS = 50
WAITING = 30  # events that wait for a slow viewer; the oldest are dropped
MOST = 200  # answers in an event


class Feed:
    """Server-sent events of a station. The line never waits for it and is not told of it: it looks
    at what is there, at its own pace, and while somebody watches.
    """

    def __init__(self, station: Station) -> None:
        self._station = station
        self._viewers: dict[asyncio.Event, collections.deque[bytes]] = {}
        self._number = 0  # of the last answer that was told
        self.closed = False

    async def run(self) -> None:
        """Look and tell until it is cancelled."""
        tick = 0
        while True:
            await asyncio.sleep(TICK)
            tick += 1
            if not self._viewers:
                continue
            if seen := self._station.history.since(self._number)[-MOST:]:
                self._number = seen[-1].number
                self._tell(_event("answers", answers(seen)))
            if tick % STATE_TICKS == 0:
                self._tell(_event("state", describe(self._station)))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of one viewer: what there is, then what comes.

        Raises:
            OverloadedError: there are too many viewers.
        """
        if len(self._viewers) >= VIEWERS:
            raise OverloadedError(f"{VIEWERS} pages are open; close one")
        news, waiting = asyncio.Event(), collections.deque[bytes](maxlen=WAITING)
        if not self._viewers:
            past = self._station.history.since(0)
            self._number = past[-1].number if past else 0
        past = [each for each in self._station.history.since(0) if each.number <= self._number]
        waiting += [_event("history", answers(past)), _event("state", describe(self._station))]
        self._viewers[news] = waiting
        try:
            while not self.closed:
                while waiting:
                    yield waiting.popleft()
                news.clear()
                await news.wait()
        finally:
            del self._viewers[news]

    def close(self) -> None:
        """Let every viewer go."""
        self.closed = True
        for news in self._viewers:
            news.set()

    def _tell(self, event: bytes) -> None:
        for news, waiting in self._viewers.items():
            waiting.append(event)
            news.set()


def _event(kind: str, data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode()
