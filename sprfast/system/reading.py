"""Opening files to read: regular files only, whatever a name becomes in the meantime."""

from __future__ import annotations

import errno
import io
import os
import stat


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """A regular file, links followed, opened for reading.

    It is opened without waiting and then looked at: between a look at the name and the opening, the
    name could become a pipe, whose opening waits for ever.

    Raises:
        OSError: there is no such file, it is not a regular one, or it cannot be read.
        ValueError: no file can have this name.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return io.FileIO(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
