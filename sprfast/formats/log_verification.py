"""What a log of verdicts says of itself: whether every line is as it was written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from sprfast.errors import InputError
from sprfast.formats.verdict_log import BEGINNING, Record, earlier_files, record_of


@dataclasses.dataclass(kw_only=True)
class Verification:
    """What the files of a log say of themselves."""

    files: int = 0
    records: int = 0
    answers: int = 0
    first: int = 0  # number of the first record; 0: there is none
    last: int = 0
    head: str = ""  # hash of the last record: whoever keeps it can tell that nothing was cut off at the end
    cuts: int = 0  # records that a crash has cut, as the log itself says
    lost: int = 0  # answers that could not be written, as the log itself says
    problem: str = ""  # the first line that is not as it was written, and what is different; "": none


def verify(
    path: str | os.PathLike[str],
    *,
    first: int = 1,
    head: str | None = None,
    on_record: Callable[[Record], object] = lambda record: None,
) -> Verification:
    """Read a log with the files that it has filled before, up to the first line that is not as it
    was written.

    Args:
        path: the file that is written to, or one that is full, which is read alone.
        first: number of the record that it must begin with.
        head: hash that one of its records must have.
        on_record: called with each record.

    Raises:
        InputError: there is no such log, or it cannot be read.
    """
    active = Path(os.path.realpath(path))
    paths = [*earlier_files(active), *([active] if active.exists() else [])]
    if not paths:
        raise InputError(f"{path}: no such log")
    found, seen, previous = Verification(files=len(paths)), False, BEGINNING
    for number, file in enumerate(paths):
        for place, record in _records(file):
            if isinstance(record, str):
                found.problem = f"{file.name}: line {place}: {record}"
                return found
            expected = found.last + 1 if found.records else first
            if record["number"] != expected or (record["previous"] != previous and (found.records or first == 1)):
                found.problem = f"{file.name}: line {place}: {_out_of_place(record, expected, place, paths[number:])}"
                return found
            previous = record["sha256"]
            seen = seen or previous == head
            found.records, found.last, found.head = found.records + 1, expected, previous
            found.first = found.first or expected
            found.answers += "event" not in record
            found.cuts += record.get("event") == "cut"
            found.lost += record["answers"] if record.get("event") == "lost" else 0
            on_record(record)
    if head and not seen:
        found.problem = f"{active.name}: no record has the hash {head}: records after the last were removed"
    return found


def _records(path: Path) -> Iterator[tuple[int, Record | str]]:
    """Line numbers with the record in each, or with what is wrong, after which nothing comes."""
    damaged, digest, ending = 0, hashlib.sha256(), b""
    reason = ""
    try:
        with path.open("rb") as stream:
            for place, line in enumerate(stream, 1):
                record = record_of(line)
                is_cut = record is not None and record.get("event") == "cut"
                if record is None:
                    damaged, reason = damaged or place, reason or _damage(line)
                    digest.update(ending + line.removesuffix(b"\n"))
                    ending = b"\n"
                elif is_cut == bool(damaged) and (not is_cut or record["cut_sha256"] == digest.hexdigest()):
                    damaged, digest, ending, reason = 0, hashlib.sha256(), b"", ""
                    yield place, record
                elif damaged:
                    break
                else:
                    yield place, "changed: the bytes of the cut that it records are not there"
                    return
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if damaged:
        yield damaged, reason


def _damage(line: bytes) -> str:
    if not line.endswith(b"\n"):
        return "cut: it has no end; the log records that when it is opened again"
    try:
        json.loads(line)
    except ValueError:
        return "cut or damaged: it is no whole record"
    return "changed: its content does not have the hash that it ends with"


def _out_of_place(record: Record, expected: int, place: int, paths: list[Path]) -> str:
    """What is said of a whole record that does not follow the one before it."""
    number = record["number"]
    if number == expected:
        before = "another first record" if expected == 1 else f"another record {expected - 1}"
        return f"changed: record {number} was written after {before} than the one that stands before it"
    if number < expected:
        return f"reordered: record {number} stands where record {expected} belongs"
    rest = (each for index, path in enumerate(paths) for at, each in _records(path) if index or at > place)
    if any(not isinstance(each, str) and each["number"] == expected for each in rest):
        return f"reordered: record {number} stands where record {expected} belongs, which comes later"
    missing = f"record {expected} is" if number == expected + 1 else f"records {expected} to {number - 1} are"
    return f"deleted: {missing} missing before record {number}"
