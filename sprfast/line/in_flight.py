"""All frames of a line and how far each has come: the one place that its threads share, behind one
lock.

Nothing of the caller's runs under the lock: ids are compared before, futures are completed and
callbacks are called after. The lock may be taken again by its own thread, since a signal handler
may use the line while the main thread is in it, and an interruption may leave it half-way. So the
tables are by number, what is done to them may be done twice, and a frame's stage is written last.
Threads that wait look again every `BEAT` seconds, so that a notice which an interruption swallowed
costs no more than that.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable
from typing import Literal, get_args

from sprfast.data.images import Image
from sprfast.engine.predictor import Predictor, Result
from sprfast.errors import ClosedError, DeadlineExceededError, InputError, OverloadedError, SprfastError
from sprfast.line.answer import Entry, Stage
from sprfast.line.known_ids import KnownIds
from sprfast.line.telling import described

Overflow = Literal["block", "reject", "drop_oldest"]
AHEAD = 2  # batches that are prepared before the network asks for them
BEAT = 0.5  # seconds after which a thread that waits looks again


class InFlight:
    """Frames, from `admit` until they are `released`.

    The arguments are those of `Line`. Beside `capacity` frames taken and not delivered, as many
    again may wait for delivery after they overflowed.
    """

    def __init__(self, capacity: int, overflow: Overflow, timeout: float, max_batch: int, in_order: bool) -> None:
        if overflow not in get_args(Overflow):
            raise InputError(f"overflow: {overflow!r} is not allowed, choose from {', '.join(get_args(Overflow))}")
        self.capacity, self._overflow, self._timeout = capacity, overflow, timeout
        self._max_batch, self._in_order = max_batch, in_order
        self._lock = threading.RLock()
        self._waiting_or_room = threading.Condition(self._lock)  # for what prepares
        self._ready_changed = threading.Condition(self._lock)  # for the network
        self._decided = threading.Condition(self._lock)  # for the delivery
        self._alarm_changed = threading.Condition(self._lock)  # for the clock
        self._space = threading.Condition(self._lock)  # for `admit`
        self._emptied = threading.Condition(self._lock)
        self._known = KnownIds()
        self._numbers = itertools.count()
        # by number, so in the order of `admit`
        self._entries: dict[int, Entry] = {}  # taken and not released
        self._waiting: dict[int, Entry] = {}
        self._ready: dict[int, Entry] = {}
        self._to_deliver: dict[int, Entry] = {}  # decided; in order, those that are not decided too
        self._overflowed: set[int] = set()  # of them, those refused or dropped by a full line
        self._due: list[tuple[float, int]] = []  # alarms; frames that were answered stay in it for a while
        self.closed: str | None = None  # why no more frames are taken
        self.stopped = False
        self.failure: SprfastError | None = None  # that every frame is answered with

    # What `Line.submit` does.

    def admit(self, entry: Entry) -> None:
        """Take a frame in, or decide it at once where the line is full or has failed.

        Raises:
            InputError: its id is in the line, or was among the last ones answered.
            OverloadedError: answers are not being taken, so that not even this one could be given.
            ClosedError: the line takes no frames any more.
        """
        if self.closed:
            raise ClosedError(self.closed)
        self._known.take(entry.claim)
        try:
            with self._lock:
                self._check()
                if self._overflow == "block" and self._full and not self.failure:
                    until = min(time.monotonic() + self._timeout, entry.due)
                    _wait(self._space, lambda: not self._full or bool(self.closed or self.failure), until)
                    self._check()  # all may have changed
                self._insert(entry)
        except SprfastError:
            self._known.drop(entry.claim)
            raise

    def put(self, entry: Entry) -> None:
        """An admitted frame whose pixels are the line's own now."""
        with self._lock:
            if entry.open:
                entry.stage = Stage.WAITING
                self._waiting[entry.number] = entry
                self._waiting_or_room.notify()

    def withdraw(self, entry: Entry, error: SprfastError) -> None:
        """`submit` was interrupted: a frame that was taken is decided, one that was not leaves no
        trace.
        """
        with self._lock:
            if entry.number not in self._entries:
                self._known.drop(entry.claim)
            elif entry.open:
                self._decide(entry, None, error, str(error))

    # What prepares.

    def take_waiting(self) -> Entry | None:
        """The oldest frame that waits, when the network is not too far behind; None: there will be
        no more.
        """
        with self._lock:
            while not self.stopped:
                if not self._waiting or len(self._ready) >= AHEAD * self._max_batch:
                    self._waiting_or_room.wait(BEAT)
                elif self._still_wanted(entry := next(iter(self._waiting.values()))):
                    entry.stage = Stage.PREPARING
                    del self._waiting[entry.number]
                    return entry
            return None

    def put_ready(self, entry: Entry, prepared: Image, predictor: Predictor) -> None:
        """A prepared frame."""
        with self._lock:
            if entry.open:
                entry.image, entry.prepared, entry.predictor = None, prepared, predictor
                entry.stage, entry.ready_time = Stage.READY, time.monotonic()
                self._ready[entry.number] = entry
                self._ready_changed.notify()

    # What runs the network.

    def take_batch(self, max_wait: float) -> list[Entry]:
        """Frames of one predictor, the oldest ready one among them; empty: there will be no more.

        An incomplete batch waits `max_wait` seconds for more, from when its first frame was ready.
        """
        with self._lock:
            while not self.stopped:
                ready = [entry for entry in list(self._ready.values()) if self._still_wanted(entry)]
                if not ready:
                    self._ready_changed.wait(BEAT)
                    continue
                batch = [entry for entry in ready if entry.predictor is ready[0].predictor][: self._max_batch]
                patience = batch[0].ready_time + max_wait - time.monotonic()
                if len(batch) < self._max_batch and patience > 0 and not self.closed:
                    self._ready_changed.wait(min(patience, BEAT))
                    continue
                for entry in batch:
                    entry.stage = Stage.SCORING
                    del self._ready[entry.number]
                self._waiting_or_room.notify_all()
                return batch
            return []

    def decide(self, entry: Entry, result: Result | None, error: SprfastError | None) -> None:
        """What is to be answered; nothing happens where that is decided already, as for a frame
        whose deadline has passed.
        """
        reason = described(error) if error else ""
        with self._lock:
            if entry.open:
                self._decide(entry, result, error, reason)

    def abandon(self, stage: Stage, error: SprfastError) -> None:
        """Decide what has come to this stage: the thread that had it has failed."""
        with self._lock:
            self._decide_all(error, [entry for entry in self._entries.values() if entry.stage is stage])

    # What answers.

    def take_decided(self) -> Entry | None:
        """The next frame whose answer may be delivered, in order; None: there will be no more."""
        with self._lock:
            while True:
                entry = next(iter(self._to_deliver.values()), None)
                if entry and not entry.open:
                    del self._to_deliver[entry.number]
                    return entry
                if entry is None and self.stopped:
                    return None
                self._decided.wait(BEAT)

    def take_late(self, beat: float) -> list[Entry] | None:
        """Frames whose deadlines have come, decided now if not before, and that may have no answer
        yet; empty after `beat` seconds, None: there will be no more.
        """
        with self._lock:
            now = time.monotonic()
            until = now + beat
            while not (late := self._passed(now)) and now < until:
                if self.stopped and not self._entries:
                    return None
                self._alarm_changed.wait(min(until, self._due[0][0] if self._due else math.inf) - now)
                now = time.monotonic()
            return late

    def _passed(self, now: float) -> list[Entry]:
        passed = []
        while self._due and (self._due[0][0] <= now or not self._unanswered(self._due[0])):
            if entry := self._unanswered(heapq.heappop(self._due)):
                self._still_wanted(entry)
                passed.append(entry)
        return passed

    def hold(self, entry: Entry) -> None:
        """One more will call `release`."""
        with self._lock:
            entry.holders += 1

    def release(self, entry: Entry) -> None:
        """A callback has returned. After the last one the id is remembered for a while, and there
        is space for another frame.
        """
        with self._lock:
            entry.holders -= 1
            if entry.holders or not self._entries.pop(entry.number, None):
                return
            self._overflowed.discard(entry.number)
            self._known.remember(entry.claim)
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
            self._decide_all(error, list(self._entries.values()))
            self._space.notify_all()

    def wait_until_empty(self, timeout: float) -> bool:
        """Whether every frame has been answered, after up to `timeout` seconds."""
        with self._lock:
            return _wait(self._emptied, lambda: not self._entries, time.monotonic() + timeout)

    def stop(self, error: ClosedError) -> list[Entry]:
        """Let the threads end; the frames without an answer, all of which get this error, also
        where they had a result.
        """
        with self._lock:
            self.closed, self.stopped = self.closed or str(error), True
            left = [entry for entry in self._entries.values() if entry.answer is None]
            self._decide_all(error, left)
            for entry in left:
                if entry.error is None:
                    entry.error, entry.reason = error, str(error)
            for condition in (
                self._waiting_or_room,
                self._ready_changed,
                self._decided,
                self._alarm_changed,
                self._space,
            ):
                condition.notify_all()
            return left

    @property
    def unanswered(self) -> int:
        """Frames taken whose answer has not been delivered."""
        return len(self._entries)

    # Under the lock.

    @property
    def _full(self) -> bool:
        return len(self._entries) - len(self._overflowed) >= self.capacity

    def _check(self) -> None:
        if self.closed:
            raise ClosedError(self.closed)
        if len(self._overflowed) >= self.capacity or len(self._entries) >= 2 * self.capacity:
            raise OverloadedError(
                f"the line holds {len(self._entries)} frames, {len(self._overflowed)} of them refused or dropped, and "
                f"nobody takes its answers: a callback is too slow"
            )

    def _insert(self, entry: Entry) -> None:
        full, entry.number = self._full, next(self._numbers)
        self._entries[entry.number] = entry
        if self._in_order:
            self._to_deliver[entry.number] = entry
        if self.stopped and entry.open:  # by a signal handler, since the last look
            del self._entries[entry.number]
            self._to_deliver.pop(entry.number, None)
            raise ClosedError(self.closed or "the line is closed")
        if self.failure:
            self._decide(entry, None, self.failure, described(self.failure))
        elif full and self._still_wanted(entry):
            self._make_room(entry)
        elif full:  # its deadline came while it waited for room
            self._overflowed.add(entry.number)
        if entry.answer is None and entry.due < math.inf:
            self._set_alarm(entry)

    def _set_alarm(self, entry: Entry) -> None:
        if len(self._due) > 2 * self.capacity + len(self._entries):  # most of them answered, long before they are due
            self._due = [alarm for alarm in self._due if self._unanswered(alarm)]
            heapq.heapify(self._due)
        alarm = (entry.due, entry.number)
        heapq.heappush(self._due, alarm)
        if self._due[0] is alarm:
            self._alarm_changed.notify()  # the clock has an earlier moment to wake at

    def _unanswered(self, alarm: tuple[float, int]) -> Entry | None:
        entry = self._entries.get(alarm[1])
        return entry if entry and entry.answer is None else None

    def _still_wanted(self, entry: Entry) -> bool:
        """False, and decided, where its deadline has passed."""
        if entry.open and entry.due <= time.monotonic():
            error = late(entry)
            self._decide(entry, None, error, str(error))
        return entry.open

    def _decide(self, entry: Entry, result: Result | None, error: SprfastError | None, reason: str) -> None:
        entry.result, entry.error, entry.reason = result, error, reason
        self._to_deliver[entry.number] = entry
        self._waiting.pop(entry.number, None)
        self._ready.pop(entry.number, None)
        entry.image = entry.prepared = None
        entry.stage = Stage.DECIDED  # last: until then it can be decided again
        self._decided.notify()

    def _make_room(self, newest: Entry) -> None:
        """Refuse the newest frame, or drop the oldest that the network has not begun."""
        oldest = next(entry for entry in self._entries.values() if entry.stage < Stage.SCORING)
        entry = oldest if self._overflow == "drop_oldest" else newest
        what = "refused" if entry is newest else "dropped for a newer frame"
        error = OverloadedError(f"{what}: the line holds {self.capacity} frames, its capacity")
        self._overflowed.add(entry.number)
        self._decide(entry, None, error, str(error))

    def _decide_all(self, error: SprfastError, entries: list[Entry]) -> None:
        reason = described(error)
        for entry in entries:
            if entry.open:
                self._decide(entry, None, error, reason)


def late(entry: Entry) -> DeadlineExceededError:
    """What a frame gets that has no answer at its deadline."""
    return DeadlineExceededError(f"no answer within {entry.due - entry.trigger_time:.3g} s of the trigger")


def _wait(condition: threading.Condition, holds: Callable[[], bool], until: float) -> bool:
    """Whether it holds by then; seconds without end are allowed."""
    while not holds() and (left := until - time.monotonic()) > 0:
        condition.wait(min(left, BEAT))
    return holds()
