"""All frames of a line and how far each has come: the one place that its threads share, behind one
lock.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import math
import threading
import time
from collections.abc import Hashable
from typing import Literal, get_args

from sprfast.data.images import Image
from sprfast.engine.predictor import Predictor, Result
from sprfast.errors import ClosedError, DeadlineExceededError, InputError, OverloadedError, SprfastError
from sprfast.line.answer import Entry, Stage

Overflow = Literal["block", "reject", "drop_oldest"]
REMEMBERED = 10_000  # ids that were answered last, which are refused like those in the line
AHEAD = 2  # batches that are prepared before the network asks for them


class InFlight:
    """Frames by id, from `admit` to `delivered`.

    The arguments are those of `Line`. Beside `capacity` frames taken and not delivered, as many
    again may wait for delivery after they overflowed.
    """

    def __init__(self, capacity: int, overflow: Overflow, timeout: float, max_batch: int, in_order: bool) -> None:
        if overflow not in get_args(Overflow):
            raise InputError(f"overflow: {overflow!r} is not allowed, choose from {', '.join(get_args(Overflow))}")
        self.capacity, self._overflow, self._timeout = capacity, overflow, timeout
        self._max_batch, self._in_order = max_batch, in_order
        self._lock = threading.Lock()
        self._waiting_or_room = threading.Condition(self._lock)  # for what prepares
        self._ready_changed = threading.Condition(self._lock)  # for the network
        self._decided = threading.Condition(self._lock)  # for the delivery
        self._space = threading.Condition(self._lock)  # for `admit`
        self._emptied = threading.Condition(self._lock)
        self._entries: dict[Hashable, Entry] = {}  # taken and not delivered, in the order of `admit`
        self._remembered: collections.OrderedDict[Hashable, None] = collections.OrderedDict()
        self._waiting: collections.deque[Entry] = collections.deque()
        self._ready: list[Entry] = []
        self._deliverable: list[Entry] = []
        # alarms; ids, since frames that were answered stay in it for a while
        self._due: list[tuple[float, int, Hashable]] = []
        self._numbers = itertools.count()
        self._overflowed = 0
        self.closed: str | None = None  # why no more frames are taken
        self._stopped = False
        self.failure: SprfastError | None = None  # that every frame is answered with

    # What `Line.submit` does.

    def admit(self, entry: Entry) -> None:
        """Take a frame in, or decide it at once where the line is full or has failed.

        Raises:
            InputError: its id is in the line, or was among the last ones answered.
            OverloadedError: answers are not being taken, so that not even this one could be given.
            ClosedError: the line takes no frames any more.
        """
        with self._lock:
            self._check(entry)
            if self._overflow == "block" and self._full and not self.failure:
                self._space.wait_for(lambda: not self._full or self.closed or self.failure, self._timeout)
                self._check(entry)  # all may have changed
            full = self._full
            self._entries[entry.id] = entry
            if self.failure:
                self._decide(entry, None, self.failure)
            elif full:
                self._make_room(entry)
            if entry.open and entry.due < math.inf:
                self._set_alarm(entry)

    def put(self, entry: Entry) -> None:
        """An admitted frame whose pixels are the line's own now."""
        with self._lock:
            if entry.open:
                entry.stage = Stage.WAITING
                self._waiting.append(entry)
                self._waiting_or_room.notify()

    # What prepares.

    def take_waiting(self) -> Entry | None:
        """The oldest frame that waits, when the network is not too far behind; None: there will be
        no more.
        """
        with self._lock:
            while not self._stopped:
                if not self._waiting or len(self._ready) >= AHEAD * self._max_batch:
                    self._waiting_or_room.wait()
                elif self._still_wanted(entry := self._waiting[0]):
                    entry.stage = Stage.PREPARING
                    return self._waiting.popleft()
            return None

    def put_ready(self, entry: Entry, prepared: Image, predictor: Predictor) -> None:
        """A prepared frame."""
        with self._lock:
            if entry.open:
                entry.image, entry.prepared, entry.predictor = None, prepared, predictor
                entry.stage, entry.ready_time = Stage.READY, time.monotonic()
                self._ready.append(entry)
                self._ready_changed.notify()

    # What runs the network.

    def take_batch(self, max_wait: float) -> list[Entry]:
        """Frames of one predictor, the oldest ready one among them; empty: there will be no more.

        An incomplete batch waits `max_wait` seconds for more, from when its first frame was ready.
        """
        with self._lock:
            while not self._stopped:
                for entry in list(self._ready):
                    self._still_wanted(entry)
                if not self._ready:
                    self._ready_changed.wait()
                    continue
                same = [entry for entry in self._ready if entry.predictor is self._ready[0].predictor]
                batch = same[: self._max_batch]
                patience = batch[0].ready_time + max_wait - time.monotonic()
                if len(batch) < self._max_batch and patience > 0 and not self.closed:
                    self._ready_changed.wait(patience)
                    continue
                for entry in batch:
                    entry.stage = Stage.SCORING
                    self._ready.remove(entry)
                self._waiting_or_room.notify_all()
                return batch
            return []

    def decide(self, entry: Entry, result: Result | None, error: SprfastError | None) -> None:
        """What is to be answered; nothing happens where that is decided already, as for a frame
        whose deadline has passed.
        """
        with self._lock:
            if entry.open:
                self._decide(entry, result, error)

    # What delivers.

    def take_decided(self) -> list[Entry]:
        """All frames whose answers may be delivered now, in order; empty: there will be no more."""
        with self._lock:
            while True:
                now = time.monotonic()
                while self._due and (self._due[0][0] <= now or not self._is_open(self._due[0])):
                    entry = self._entries.get(heapq.heappop(self._due)[2])
                    if entry:
                        self._still_wanted(entry)
                if taken := self._take_deliverable():
                    return taken
                if self._stopped and not self._entries:
                    return []
                self._decided.wait(self._due[0][0] - now if self._due else None)

    def _take_deliverable(self) -> list[Entry]:
        if self._in_order:
            return list(itertools.takewhile(lambda entry: not entry.open, self._entries.values()))
        taken, self._deliverable = self._deliverable, []
        return taken

    def delivered(self, entry: Entry) -> None:
        """Its answer has been given: the id is remembered for a while, and there is space for
        another frame.
        """
        with self._lock:
            del self._entries[entry.id]
            self._overflowed -= entry.overflowed
            self._remembered[entry.id] = None
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
            self._space.notify()
            if not self._entries:
                self._emptied.notify_all()

    # What ends it.

    def refuse(self, reason: str) -> None:
        """Take no more frames; `admit` raises ClosedError."""
        with self._lock:
            self.closed = self.closed or reason
            self._space.notify_all()
            self._ready_changed.notify_all()

    def fail(self, error: SprfastError) -> None:
        """Answer every frame, present and to come, with this error."""
        with self._lock:
            self.failure = self.failure or error
            self._decide_all(error)

    def wait_until_empty(self, timeout: float) -> bool:
        """Whether every frame has been answered, after up to `timeout` seconds."""
        with self._lock:
            return self._emptied.wait_for(lambda: not self._entries, timeout)

    def stop(self, error: ClosedError) -> int:
        """Answer what is left with this error and let the threads end; the number of frames that
        were left.
        """
        with self._lock:
            left = sum(entry.open for entry in self._entries.values())
            self.closed, self._stopped = self.closed or str(error), True
            self._decide_all(error)
            for condition in (self._waiting_or_room, self._ready_changed, self._decided, self._space):
                condition.notify_all()
            return left

    @property
    def unanswered(self) -> int:
        """Frames taken whose answer has not been delivered."""
        return len(self._entries)

    # Under the lock.

    @property
    def _full(self) -> bool:
        return len(self._entries) - self._overflowed >= self.capacity

    def _check(self, entry: Entry) -> None:
        if self.closed:
            raise ClosedError(self.closed)
        if entry.id in self._entries or entry.id in self._remembered:
            where = "is in the line" if entry.id in self._entries else "was answered"
            raise InputError(f"id {entry.id!r}: {where} already; every frame needs an id of its own")
        if self._overflowed >= self.capacity or len(self._entries) >= 2 * self.capacity:
            raise OverloadedError(
                f"the line holds {len(self._entries)} frames, {self._overflowed} of them refused or dropped, and "
                f"nobody takes its answers: a callback is too slow"
            )

    def _set_alarm(self, entry: Entry) -> None:
        if len(self._due) > 2 * self.capacity + len(self._entries):  # most of them answered, long before they are due
            self._due = [alarm for alarm in self._due if self._is_open(alarm)]
            heapq.heapify(self._due)
        heapq.heappush(self._due, (entry.due, next(self._numbers), entry.id))
        if self._due[0][2] == entry.id:
            self._decided.notify()  # the delivery has an earlier moment to wake at

    def _is_open(self, alarm: tuple[float, int, Hashable]) -> bool:
        entry = self._entries.get(alarm[2])
        return entry is not None and entry.open

    def _still_wanted(self, entry: Entry) -> bool:
        """False, and decided, where its deadline has passed."""
        if entry.open and entry.due <= time.monotonic():
            self._decide(entry, None, late(entry))
        return entry.open

    def _decide(self, entry: Entry, result: Result | None, error: SprfastError | None) -> None:
        if entry.stage is Stage.WAITING:
            self._waiting.remove(entry)
        elif entry.stage is Stage.READY:
            self._ready.remove(entry)
        entry.stage, entry.result, entry.error = Stage.DECIDED, result, error
        entry.image = entry.prepared = None
        if not self._in_order:
            self._deliverable.append(entry)
        self._decided.notify()

    def _make_room(self, newest: Entry) -> None:
        """Refuse the newest frame, or drop the oldest that the network has not begun."""
        oldest = next(entry for entry in self._entries.values() if entry.stage < Stage.SCORING)
        entry = oldest if self._overflow == "drop_oldest" else newest
        what = "refused" if entry is newest else "dropped for a newer frame"
        entry.overflowed = True
        self._overflowed += 1
        self._decide(entry, None, OverloadedError(f"{what}: the line holds {self.capacity} frames, its capacity"))

    def _decide_all(self, error: SprfastError) -> None:
        for entry in self._entries.values():
            if entry.open:
                self._decide(entry, None, error)
        self._space.notify_all()


def late(entry: Entry) -> DeadlineExceededError:
    """What a frame gets that has no answer at its deadline."""
    return DeadlineExceededError(f"no answer within {entry.due - entry.trigger_time:.3g} s of the trigger")
