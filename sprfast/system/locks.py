"""New files that one process or thread has to itself until it lets go of them or dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from pathlib import Path

_held: set[int] = set()  # descriptors
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # of file systems such as Lustre


def created(path: Path, mode: int, *, wait: bool) -> tuple[Path, int] | None:
    """The new file `path` and a descriptor of it, locked; one that a dead process has left is
    replaced. Where the file system knows no locks the file has a name of its own instead.

    Args:
        path: a name that nothing but this function uses.
        mode: of the file, before the umask.
        wait: for another process or thread that has it.

    Returns:
        for `release`; None where another one has it and `wait` is not set.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        descriptor = _created(path, mode, wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        path = path.with_name(f"{path.stem}-{secrets.token_hex(8)}{path.suffix}")
        descriptor, _ = _opened(path, mode)
    if descriptor is None:
        return None
    _held.add(descriptor)
    return path, descriptor


def release(path: Path, descriptor: int) -> None:
    """Let go of what `created` gave, and remove it where it still has its name; a fork of the
    process has nothing to let go of.
    """
    if descriptor in _held:
        remove(path, descriptor)
        _held.discard(descriptor)
        os.close(descriptor)


def remove(path: Path, descriptor: int) -> None:
    """Remove the file of a locked descriptor, but not one that has taken its name."""
    if is_at(path, descriptor):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the file of this descriptor still has the name `path`."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _created(path: Path, mode: int, wait: bool) -> int | None:
    while True:
        descriptor, new = _opened(path, mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            if new:
                remove(path, descriptor)
            os.close(descriptor)
            raise
        if new and is_at(path, descriptor):
            return descriptor
        if not new:
            remove(path, descriptor)
        os.close(descriptor)


def _opened(path: Path, mode: int) -> tuple[int, bool]:
    """A descriptor of `path`, and whether the file is new."""
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), True
        with contextlib.suppress(FileNotFoundError):  # its process has just let go of it
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), False


def _forget() -> None:
    """A fork has its parent's locks too, and would keep them after the parent has died."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)
