"""Writing files so that nothing is lost: beside, fsync, rename; and never outside the folder asked
for.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sprfast.errors import InputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on a clean exit it is synced and renamed to `path`.

    Whatever goes wrong before the rename (an exception in the body, a full disk), the old file at
    `path` stays as it was and the temporary file is removed.

    Raises:
        InputError: the file cannot be written (missing folder, read-only or full disk).
    """
    target = Path(path)
    with _writing(target, "; the old file, if any, is unchanged"):
        descriptor, temporary = tempfile.mkstemp(prefix=".sprfast-", suffix=".tmp", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    _sync_folder(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path`, which must not exist; on a clean exit it is renamed to
    `path`.

    Whatever goes wrong before the rename, the temporary folder is removed and there is nothing at
    `path`.

    Raises:
        InputError: `path` exists, or cannot be written.
    """
    target = Path(path)
    with _writing(target):
        if os.path.lexists(target):
            raise InputError(f"{target}: exists already; name a folder that does not, or remove it first")
        with tempfile.TemporaryDirectory(
            prefix=".sprfast-", suffix=".tmp", dir=target.parent, ignore_cleanup_errors=True
        ) as temporary:
            yield Path(temporary)
            os.chmod(temporary, 0o777 & ~_umask())
            os.rename(temporary, target)
    _sync_folder(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether `atomic_write` could begin.

    Raises:
        InputError: the file could not be written.
    """
    target = Path(path)
    with _writing(target):
        if target.is_dir():
            raise InputError(f"{target}: cannot be written (it is a folder)")
        with tempfile.TemporaryFile(dir=target.parent):
            pass


@contextlib.contextmanager
def output_folder(path: str | os.PathLike[str]) -> Iterator[None]:
    """The folder, made where it is missing; where the body fails before anything is in it, what was
    made is removed again.

    Raises:
        InputError: it cannot be made.
    """
    target = Path(path)
    with _writing(target):
        missing = [each for each in (target, *target.parents) if not os.path.lexists(each)]
        target.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty
            for each in missing:
                each.rmdir()
        raise


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """`atomic_write` of a whole content."""
    with atomic_write(path) as stream:
        stream.write(content)


def confined(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of `name` inside `folder`, with every symbolic link resolved.

    Raises:
        InputError: `name` is absolute, holds a NUL, or leads out of `folder` (`..`, a link).
    """
    root = Path(os.path.realpath(folder))
    if "\0" in name or os.path.isabs(name):
        raise InputError(f"{name!r}: an output name must be relative to {root}")
    try:
        path = Path(os.path.realpath(root / name))
    except UnicodeEncodeError as error:
        raise InputError(f"{name!r}: not a name that a file can have here") from error
    if not path.is_relative_to(root) or path == root:
        raise InputError(f"{name!r}: leads out of {root}")
    return path


@contextlib.contextmanager
def _writing(target: Path, consolation: str = "") -> Iterator[None]:
    """Raise InputError where the system refuses the body something, or `target` cannot be a name:
    it is too long, holds a NUL, or is not in the system's encoding.
    """
    try:
        try:
            os.lstat(target)
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise InputError(f"{target}: cannot be written ({error})") from error
        yield
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}){consolation}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; a file system without folder sync is left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
