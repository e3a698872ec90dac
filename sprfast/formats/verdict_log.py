"""The log of verdicts: files of JSON Lines in which a later change shows.

Each line is a record. It has a `number`, counted from 1, and the hash of the record before it
(`previous`), and it ends with its own hash: the SHA-256 of its bytes up to `, "sha256"`. A record
is an answer, or has an `event`:

* "model": from here on this model answers, with this threshold.
* "cut": the bytes after the record before are what a crash has left of a record. They stay.
* "lost": so many answers could not be written and found no room in memory.

When a file would grow beyond its size it is renamed to `NAME.FIRST-LAST.SUFFIX`, by the numbers of
its records, and the chain goes on in a new file.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sprfast._version import __version__
from sprfast.config import require
from sprfast.errors import InputError
from sprfast.method.threshold import Threshold
from sprfast.system import files, locks

MAX_BYTES = 64 << 20  # of a file, about 170,000 answers
BEGINNING = "0" * 64  # what the first record has for `previous`
Record = dict[str, Any]
_OPENING = b'{"number": '
_CLOSING = re.compile(rb', "sha256": "([0-9a-f]{64})"\}\n')
_CLOSING_BYTES = 80
# What every record has, and each kind of them.
_FIELDS: dict[str, Any] = {"number": int, "time": str, "previous": str}
_NUMBER = (int, float, type(None))
_OF_EVENTS: dict[str | None, dict[str, Any]] = {
    None: {"id": (str, int), "verdict": str, "score": _NUMBER, "threshold": _NUMBER, "model_sha256": str},
    "model": {"model_sha256": str, "threshold": (dict, type(None))},
    "cut": {"cut_sha256": str},
    "lost": {"answers": int},
}


def now() -> str:
    """The time in UTC, as records have it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def model(sha256: str, threshold: Threshold | None) -> Record:
    """The fields of a record that says which model answers from here on."""
    about = {"version": __version__, "model_sha256": sha256, "threshold": threshold.summary() if threshold else None}
    return {"time": now(), "event": "model", **about}


def answer(
    id: object, verdict: str, score: float, threshold: float | None, reason: str | None, model_sha256: str
) -> Record:
    """The fields of an answer that is given now.

    Args:
        id: of the part; a text, an integer, or another object, whose text is taken.
        score: null in the record where it is not finite.
        reason: why the verdict is ERROR.
        model_sha256: hash of the weights that have scored it.
    """
    return {
        "time": now(),
        "id": id if isinstance(id, (str, int)) else str(id),
        "verdict": verdict,
        "score": score if math.isfinite(score) else None,
        "threshold": threshold,
        "reason": reason,
        "model_sha256": model_sha256,
    }


class VerdictLog:
    """A log that this process alone writes; safe to use from several threads.

    A record is in the file when the call that writes it returns, and outlasts a loss of power after
    `sync`. A log that is there is gone on with.

    Args:
        path: a regular file, or a free name.
        max_bytes: of a file, before the log goes on in a new one; at least 4096.

    Raises:
        InputError: another process writes to the log, it cannot be written, or the file is none.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> None:
        require(type(max_bytes) is int and max_bytes >= 4096, "max_bytes", max_bytes, "an integer of at least 4096")
        self.path, self._max_bytes = Path(path), max_bytes
        self._file = Path(os.path.realpath(path))
        self._descriptor, self._end, self._first = -1, 0, 0  # of the file: where it ends, its first record
        self._number, self._previous = 0, BEGINNING  # of the last record
        self._writing, self._torn = threading.RLock(), False
        self._named_anew = True  # a name in the folder may not outlast a loss of power yet
        self._synced: list[int] = []  # descriptors of files that are full, to be synced and closed
        with contextlib.ExitStack() as opened:
            opened.enter_context(files.exclusive(path))
            files.require_replaceable(path)
            with self._named():
                self._go_on()
            opened.callback(self._close_files)
            self._opened = opened.pop_all()

    def __enter__(self) -> VerdictLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, fields: Mapping[str, Any]) -> None:
        """Write a record of these fields, whole or not at all.

        Raises:
            InputError: the disk is full, the file cannot be written, or something else has written
                to it, moved or removed it. The same record may be given again.
        """
        with self._writing, self._named():
            self._write(fields)

    def sync(self) -> None:
        """Wait until all records would outlast a loss of power; others may be written meanwhile.

        Raises:
            InputError: the disk has failed.
        """
        with self._writing, self._named():
            if self._descriptor < 0:
                return
            waiting, self._synced = [*self._synced, os.dup(self._descriptor)], []
            named, self._named_anew = self._named_anew, False
        try:
            with self._named():
                for descriptor in waiting:
                    os.fsync(descriptor)
        finally:
            for descriptor in waiting:
                os.close(descriptor)
        if named:
            files.sync_folder(self._file.parent)

    def close(self) -> None:
        """`sync`, and let go of the log; may be called again.

        Raises:
            InputError: as `sync`.
        """
        with self._writing, self._opened:
            self.sync()

    def _close_files(self) -> None:
        for descriptor in (*self._synced, self._descriptor):
            os.close(descriptor)
        self._synced, self._descriptor = [], -1

    def _go_on(self) -> None:
        """Open the file after its last record; what follows that is recorded as a cut."""
        self._descriptor = _open(self._file)
        try:
            record, end = _last(self._file)
            size = os.fstat(self._descriptor).st_size
            self._first = 0 if record is None else _first_number(self._file)
            if record is None and (earlier := earlier_files(self._file)):
                record, _ = _last(earlier[-1])
                if record is None:
                    raise InputError(f"{earlier[-1]}: has no whole record; run `sprfast log verify {self.path}`")
            self._end = size
            if record:
                self._number, self._previous = record["number"], record["sha256"]
            if end < size:
                self._record_cut(end, size)
            elif end > size:
                self._end += os.write(self._descriptor, b"\n")
        except BaseException:
            os.close(self._descriptor)
            raise

    def _record_cut(self, end: int, size: int) -> None:
        left = os.pread(self._descriptor, size - end, end)
        if end == 0 and (left.endswith(b"\n") or not (left + _OPENING).startswith(_OPENING)):
            raise InputError(f"{self.path}: is no log of verdicts; name another file")
        cut = left.removesuffix(b"\n")
        found = {"bytes": len(cut), "cut_sha256": hashlib.sha256(cut).hexdigest()}
        self._write({"time": now(), "event": "cut", **found}, b"" if left.endswith(b"\n") else b"\n")

    def _write(self, fields: Mapping[str, Any], before: bytes = b"") -> None:
        if self._descriptor < 0:
            raise InputError(f"{self.path}: is closed")
        number = self._number + 1
        line, digest = _line({"number": number, **fields, "previous": self._previous})
        self._check_file()
        if self._first and self._end + len(line) > self._max_bytes and fields.get("event") != "cut":
            self._rotate()
        left = content = before + line
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            self._torn = True
            raise
        self._end += len(content)
        self._number, self._previous, self._first = number, digest, self._first or number

    def _check_file(self) -> None:
        """See to it that the file ends where the last record does, and is the one at its name."""
        if self._torn:
            os.ftruncate(self._descriptor, self._end)
            self._torn = False
        if not locks.is_at(self._file, self._descriptor):
            raise InputError(f"{self.path}: is not the file any more that was opened: it was moved or removed")
        if os.fstat(self._descriptor).st_size != self._end:
            raise InputError(f"{self.path}: something else has written to it; close the log and open it again")

    def _rotate(self) -> None:
        full = self._file.with_name(f"{self._file.stem}.{self._first}-{self._number}{self._file.suffix}")
        if os.path.lexists(full):
            raise InputError(f"{full}: exists already, and the log needs this name for its records; move it away")
        os.rename(self._file, full)
        try:
            descriptor = _open(self._file)
        except BaseException:
            os.rename(full, self._file)
            raise
        self._synced.append(self._descriptor)
        self._descriptor, self._end, self._first, self._named_anew = descriptor, 0, 0, True

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path}: the log of verdicts cannot be written ({error.strerror})") from error


def _line(fields: Mapping[str, Any]) -> tuple[bytes, str]:
    """A record as it stands in the file, and its hash."""
    body = json.dumps(fields, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")[:-1]
    digest = hashlib.sha256(body).hexdigest()
    return body + f', "sha256": "{digest}"}}\n'.encode(), digest


def record_of(line: bytes) -> Record | None:
    """The record of a line that is as it was written; None: it is not."""
    body, end = line[:-_CLOSING_BYTES], line[-_CLOSING_BYTES:]
    closing = _CLOSING.fullmatch(end)
    if not closing or hashlib.sha256(body).hexdigest().encode() != closing[1]:
        return None
    try:
        record: Record = json.loads(line)
        wanted = _FIELDS | _OF_EVENTS[record.get("event")]
        return record if all(isinstance(record[name], kind) for name, kind in wanted.items()) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _last(path: Path) -> tuple[Record | None, int]:
    """The last whole record of a file and where it ends, one byte after the file where that lacks
    the end of the line; None and 0: there is none.
    """
    size, span = path.stat().st_size, 1 << 16
    with path.open("rb") as stream:
        while True:
            begin = max(0, size - span)
            stream.seek(begin)
            block = stream.read(size - begin)
            end = begin + len(block)
            for line in reversed(re.split(rb"(?<=\n)", block)):
                whole = line.removesuffix(b"\n") + b"\n"
                if record := record_of(whole):
                    return record, end - len(line) + len(whole)
                end -= len(line)
            if begin == 0:
                return None, 0
            span *= 4


def _first_number(path: Path) -> int:
    with path.open("rb") as stream:
        return next((record["number"] for line in stream if (record := record_of(line))), 0)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def earlier_files(path: Path) -> list[Path]:
    """The files that a log has filled, the oldest first."""
    name = re.compile(rf"{re.escape(path.stem)}\.(\d+)-\d+{re.escape(path.suffix)}")
    try:
        found = [(int(match[1]), each) for each in path.parent.iterdir() if (match := name.fullmatch(each.name))]
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be read ({error.strerror})") from error
    return [each for _, each in sorted(found)]
