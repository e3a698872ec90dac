"""A column of numbers in a temporary file: as many as the disk holds, and no more memory for many
than for few.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprfast.errors import InputError

PART = 1 << 16  # numbers that are worked on together


class Column:
    """Numbers of one type, appended and then read; the file has no name and goes with the object.

    Raises:
        InputError: there is no room for the file where temporary files are; the message says where
            that is.
    """

    def __init__(self) -> None:
        self._dtype: np.dtype[Any] | None = None
        self._count = 0
        with _named_errors():
            self._file = tempfile.TemporaryFile(prefix="sprfast-")  # noqa: SIM115  # see `close`

    def close(self) -> None:
        """Give the room on the disk back."""
        with contextlib.suppress(OSError):  # of what there was no room for, which has been said
            self._file.close()

    def __len__(self) -> int:
        return self._count

    def append(self, values: NDArray[Any]) -> None:
        """Add (n,) numbers, of the type of the first ones."""
        self._dtype = self._dtype or values.dtype
        with _named_errors():  # by writing: a mapped page without room on the disk would end the process
            self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._count += values.size

    def array(self) -> NDArray[Any]:
        """All of them, mapped into memory; what is written into it is written into the file."""
        assert self._dtype is not None  # something was appended
        if not self._count:
            return np.empty(0, self._dtype)
        with _named_errors():
            self._file.flush()
        return np.memmap(self._file, self._dtype, "r+", shape=(self._count,))

    def parts(self) -> Iterator[NDArray[Any]]:
        """The same in pieces of `PART`."""
        values = self.array()
        for first in range(0, self._count, PART):
            yield values[first : first + PART]


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "temporary folder"
        raise InputError(
            f"{folder}: no temporary file for anomaly maps ({error.strerror}); set TMPDIR to a folder with room"
        ) from error
