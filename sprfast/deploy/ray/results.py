"""Answers in a folder of Parquet files, one more at a time, so that a run that was stopped goes on
where it was.

    results.json          what computed them
    part-000000.parquet   a row an image: path, pred_score, verdict, threshold, milliseconds, reason
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sprfast.deploy.ray.libraries import require
from sprfast.errors import InputError
from sprfast.system import files

VERSION = 1
COLUMNS = ("path", "pred_score", "verdict", "threshold", "milliseconds", "reason")
_PART = re.compile(r"part-(\d{6,})\.parquet")


class Results:
    """A folder of answers by one model, setting, backend and precision; one process writes at a
    time.

    Args:
        folder: new, or with answers by the same `computed_by`.
        computed_by: plain values; they are written beside the answers.

    Raises:
        InputError: the folder cannot be written, holds something else, or another process writes to
            it.
        BackendError: pyarrow is not installed.
    """

    def __init__(self, folder: Path, computed_by: Mapping[str, str]) -> None:
        self._arrow = require("pyarrow")
        self._parquet = require("pyarrow.parquet")
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another process is writing there") from error
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
        self._require_ours(dict(computed_by))
        for leftover in folder.glob(".sprfast-*.tmp"):  # of a process that was killed
            leftover.unlink()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    @property
    def schema(self) -> Any:
        """Schema of every part; a score or threshold that is none, and no reason, are null."""
        arrow = self._arrow
        text, number = arrow.string(), arrow.float64()
        return arrow.schema(list(zip(COLUMNS, (text, number, text, number, number, text), strict=True)))

    def parts(self) -> list[Path]:
        """Whole files of answers, in the order in which they were written."""
        return sorted(path for path in self.folder.iterdir() if _PART.fullmatch(path.name))

    def answered(self) -> Any:
        """Paths that have an answer, a pyarrow array of strings.

        Raises:
            InputError: a part is damaged.
        """
        chunks = [self._read(part, ["path"]).column("path").combine_chunks() for part in self.parts()]
        return self._arrow.concat_arrays(chunks) if chunks else self._arrow.array([], self._arrow.string())

    def counts(self) -> dict[str, int]:
        """Images by verdict."""
        found: dict[str, int] = {"PASS": 0, "REJECT": 0, "ERROR": 0}
        for part in self.parts():
            for row in self._read(part, ["verdict"]).column("verdict").value_counts().to_pylist():
                found[row["values"]] += row["counts"]
        return found

    def append(self, tables: Sequence[Any]) -> None:
        """Write answers, pyarrow tables of `schema`, as the next part: whole, or not at all."""
        if not tables:
            return
        numbers = [int(_PART.fullmatch(part.name)[1]) for part in self.parts()]  # type: ignore[index]
        with files.atomic_write(self.folder / f"part-{max(numbers, default=-1) + 1:06}.parquet") as stream:
            self._parquet.write_table(self._arrow.concat_tables(tables), stream)

    def _read(self, part: Path, columns: list[str]) -> Any:
        try:
            return self._parquet.read_table(part, columns=columns, partitioning=None)
        except (OSError, ValueError, KeyError) as error:  # ArrowInvalid is a ValueError
            raise InputError(f"{part}: is damaged ({error}); remove it, and its images are scored again") from error

    def _require_ours(self, computed_by: dict[str, str]) -> None:
        path = self.folder / "results.json"
        document = {"version": VERSION, **computed_by}
        if not path.exists():
            foreign = [
                each.name
                for each in self.folder.iterdir()
                if each.name != ".lock" and not each.name.startswith(".sprfast-")
            ]
            if foreign:
                raise InputError(f"{self.folder}: holds {foreign[0]} but no results.json; name a new folder")
            files.write_bytes(path, json.dumps(document, indent=1).encode())
            return
        try:
            found = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(f"{path}: is damaged ({error}); name a new folder") from error
        if found != document:
            other = found if isinstance(found, dict) else {}
            differing = [name for name in document if other.get(name) != document[name]]
            raise InputError(
                f"{self.folder}: has answers with another {', '.join(differing) or 'content'}; name a new folder"
            )
