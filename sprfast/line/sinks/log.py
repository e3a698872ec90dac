"""The audit trail of a line: each answer as a record of a `VerdictLog`."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from sprfast.engine.predictor import Predictor
from sprfast.errors import InputError
from sprfast.formats import verdict_log
from sprfast.formats.verdict_log import MAX_BYTES, VerdictLog
from sprfast.line.answer import Answer
from sprfast.line.telling import say

_log = logging.getLogger("sprfast.line.sinks")

SYNC_INTERVAL = 1.0  # seconds after which at most a record outlasts a loss of power
ROOM = 10_000  # answers that wait in memory while the log cannot be written


class LogSink:
    """Writes each answer before `deliver` returns, and syncs it within `SYNC_INTERVAL` on a thread
    of its own.

    What cannot be written waits in memory and is tried again with the next answer and every
    `SYNC_INTERVAL`. `fault` says so meanwhile, and the logger does once. Beyond `ROOM` answers are
    counted, and the log records their number.

    Args:
        path: of the log; one that is there is gone on with.
        predictor: that answers first.
        max_bytes: of a file, before the log goes on in a new one.

    Raises:
        InputError: as of `VerdictLog`.
    """

    def __init__(self, path: str | os.PathLike[str], predictor: Predictor, max_bytes: int = MAX_BYTES) -> None:
        self._log = VerdictLog(path, max_bytes)
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._lost, self._unwritten, self._unsynced = 0, "", ""
        self._told = ""  # to the logger, by the thread below
        self._begun = 0.0  # `time.monotonic` of the write that goes on; 0: none does
        try:
            self._log.add(verdict_log.model(predictor.model_sha256, predictor.threshold))
        except BaseException:
            self._log.close()
            raise
        self._thread = threading.Thread(target=self._sync_on, name="sprfast-verdict-log", daemon=True)
        self._thread.start()

    def swap(self, predictor: Predictor) -> None:
        """Record that another model answers from here on."""
        self._put(verdict_log.model(predictor.model_sha256, predictor.threshold))

    def deliver(self, answer: Answer) -> None:
        """Write an answer, or keep it until it can be written."""
        result = answer.result
        said = (result.verdict.value, result.pred_score, result.threshold, result.reason)
        self._put(verdict_log.answer(answer.id, *said, answer.model_sha256))

    def _put(self, record: Mapping[str, Any]) -> None:
        with self._lock:
            if self._lost:
                self._write()
            if self._lost or len(self._waiting) == ROOM:
                self._lost += 1
            else:
                self._waiting.append(record)
            self._write()

    def fault(self) -> str:
        """Why not all answers are in the log; empty: they are."""
        begun = self._begun
        if begun and (busy := time.monotonic() - begun) > SYNC_INTERVAL:
            return f"{self._log.path}: the disk has not taken an answer for {busy:.0f} s"
        if unwritten := self._unwritten:
            lost = f" and {self._lost} are lost" if self._lost else ""
            return f"{unwritten}; {len(self._waiting)} records wait in memory{lost}"
        return self._unsynced

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, sync, and let go of the log, for up to `timeout` seconds; `fault` says
        afterwards what could not be written.
        """
        self._closing.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._unsynced = f"{self._log.path}: the disk has not taken the log of verdicts within {timeout:g} s"

    def _write(self) -> None:
        self._begun = time.monotonic()
        try:
            while self._waiting:
                self._log.add(self._waiting[0])
                self._waiting.popleft()
            if self._lost:
                self._log.add({"time": verdict_log.now(), "event": "lost", "answers": self._lost})
                self._lost = 0
            self._unwritten = ""
        except InputError as error:
            self._unwritten = str(error)
        finally:
            self._begun = 0.0

    def _sync_on(self) -> None:
        while not self._closing.wait(SYNC_INTERVAL):
            with self._lock:
                self._write()
            self._try(self._log.sync)
            self._tell()
        with self._lock:
            self._write()
        self._try(self._log.close)

    def _tell(self) -> None:
        said = self._unwritten or self._unsynced
        if said != self._told:
            level = logging.WARNING if said else logging.INFO
            say(level, "%s", said or f"{self._log.path}: the log of verdicts is written again", log=_log)
            self._told = said

    def _try(self, sync: Callable[[], None]) -> None:
        try:
            sync()
        except InputError as error:  # for good: what the disk has not taken it forgets
            self._unsynced = str(error)
