"""A file of lines, each of which is in the file from the moment it is written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sprfast.system import files


class Lines:
    """Lines of UTF-8 at the end of a file, which one process writes at a time.

    Args:
        path: a regular file, or a free name.
        keep: the lines that are there, but for a last one without an end, which a killed process
            has left; else the file begins anew.

    Raises:
        InputError: something else is there, or a read-only file, or another process writes to it.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.path = path
        with contextlib.ExitStack() as opened:
            opened.enter_context(files.exclusive(path))
            files.require_replaceable(path)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
            opened.callback(os.close, self._descriptor)
            self._end = sum(map(len, _whole(path))) if keep else 0
            os.ftruncate(self._descriptor, self._end)
            self._opened = opened.pop_all()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def __iter__(self) -> Iterator[str]:
        return (line[:-1].decode(errors="replace") for line in _whole(self.path))

    def append(self, line: str) -> None:
        """Write a line without its end, whole or not at all.

        Raises:
            OSError: the disk is full, or the file cannot be written any more.
        """
        left = content = line.encode(errors="backslashreplace") + b"\n"
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            raise
        self._end += len(content)

    def sync(self) -> None:
        """Wait until what was written would outlast a loss of power."""
        os.fsync(self._descriptor)


def _whole(path: Path) -> Iterator[bytes]:
    """The lines that have an end."""
    with path.open("rb") as stream:
        yield from (line for line in stream if line.endswith(b"\n"))
