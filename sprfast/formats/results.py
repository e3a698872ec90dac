"""The answers of a run over image files, a row each: in memory, or in a file of JSON Lines that has
each row as soon as it is answered, so that a run that was stopped goes on after it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sprfast._version import __version__
from sprfast.errors import InputError
from sprfast.method.threshold import Verdict
from sprfast.system.lines import Lines

NAME = "results.jsonl"
_SAME = ("model_sha256", "setting", "backend", "precision", "threshold")  # in all rows of a file


class Results:
    """Rows by one model, setting, backend and precision.

    Args:
        computed_by: what each row says of them: the fields `_SAME`.
        path: the file; None keeps the rows in memory.
        resume: keep the rows that the file has.

    Raises:
        InputError: the file cannot be written, another process writes to it, or its rows are by
            something else.
    """

    def __init__(self, computed_by: Mapping[str, Any], path: Path | None = None, *, resume: bool = False) -> None:
        self._computed_by, self._path = dict(computed_by), path
        self._rows: list[dict[str, Any]] = []
        self._verdicts: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self.overlays: set[str] = set()  # names of files that rows have, in one case
        self._lines: Lines | None = None
        if path:
            with self._writing():
                self._lines = Lines(path, keep=resume)
            try:
                self._go_on()
            except BaseException:
                self._lines.__exit__()
                raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lines:
            self._lines.__exit__(*error)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(json.loads, self._lines) if self._lines else iter(self._rows)

    @property
    def counts(self) -> dict[str, int]:
        """Images by verdict, those of runs before included."""
        return {verdict.value: self._verdicts[verdict.value] for verdict in Verdict}

    def take(self, path: str) -> bool:
        """Whether a run before has a row for the image, which counts for one image of this name
        only.
        """
        found = self._answered[path] > 0
        if found:
            self._answered[path] -= 1
        return found

    def add(self, path: str, answer: Mapping[str, Any]) -> None:
        """Keep what is said of an image, and by what and when it was computed.

        Raises:
            InputError: the file cannot be written; the rows before stay in it.
        """
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        row = {"path": path, **answer, **self._computed_by, "version": __version__, "time": now}
        self._verdicts[row["verdict"]] += 1
        if self._lines is None:
            self._rows.append(row)
            return
        with self._writing():
            self._lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False))

    def sync(self) -> None:
        """Wait until the rows would outlast a loss of power."""
        if self._lines:
            with self._writing():
                self._lines.sync()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._path}: cannot be written ({error.strerror}); the rows in it are kept, --resume goes on after "
                f"them"
            ) from error

    def _go_on(self) -> None:
        """Take up the rows that are there."""
        assert self._lines is not None
        for number, line in enumerate(self._lines, 1):
            try:
                row = json.loads(line)
                path, verdict, overlay = str(row["path"]), Verdict(row["verdict"]).value, row.get("overlay")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{self._path}: line {number} is damaged; name a new folder") from error
            for name in _SAME:
                expected = self._computed_by[name]
                if name not in row or row[name] != expected:
                    raise InputError(
                        f"{self._path}: line {number} has {name} {row.get(name)!r}, this run {expected!r}; go on with "
                        f"what computed it, or name a new folder"
                    )
            self._verdicts[verdict] += 1
            self._answered[path] += 1
            if overlay:
                self.overlays.add(str(overlay).casefold())
