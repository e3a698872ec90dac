"""Writing files so that nothing is lost: beside, fsync, rename; and never outside the folder asked
for.

Only a regular file or a free name is written. Symbolic links are followed to the file that they
lead to, which keeps its mode and its owner. What a killed process has left is removed by the next
one that writes the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from sprfast.errors import InputError
from sprfast.system import locks

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}  # else a device


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on a clean exit it is synced and renamed to `path`.

    Whatever goes wrong before the rename (an exception in the body, a full disk), the old file at
    `path` stays as it was and the temporary file is removed.

    Raises:
        InputError: the file cannot be written (missing folder, full disk), is read-only or of
            another user, or something else than a regular file is there.
    """
    writing = _writing(Path(path), "; the old file, if any, is unchanged")
    with writing, _begun(path) as (descriptor, temporary, target):
        with os.fdopen(descriptor, "wb", closefd=False) as stream:
            yield stream
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, target)
    sync_folder(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path`, which must not exist; on a clean exit it is renamed to
    `path`.

    Whatever goes wrong before the rename, the temporary folder is removed and there is nothing at
    `path`.

    Raises:
        InputError: `path` exists, cannot be written, or is being written by another process.
    """
    target = Path(path)
    with exclusive(path), _writing(target):
        if os.path.lexists(target):
            raise InputError(f"{target}: exists already; name a folder that does not, or remove it first")
        temporary = _beside(target, "tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(target.parent)


@contextlib.contextmanager
def exclusive(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep every other process and thread from the same work on the file `path` meanwhile.

    Raises:
        InputError: another one is at it, or its folder cannot be written.
    """
    with _writing(Path(path)):
        lock = _beside(Path(os.path.realpath(path)), "lock")
        created = locks.created(lock, 0o666, wait=False)
    if created is None:
        raise InputError(f"{path}: another process is working on it; wait for its end, or name another file")
    try:
        yield
    finally:
        locks.release(*created)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether `atomic_write` could begin, and remove what a killed
    process has left of its own attempt.

    Raises:
        InputError: the file could not be written.
    """
    with _writing(Path(path)), _begun(path):
        pass


def require_free(path: str | os.PathLike[str]) -> None:
    """Keep what was made before, in a run that was not told to replace it.

    Raises:
        InputError: there is something at `path`.
    """
    with _writing(Path(path)):
        if os.path.lexists(path):
            raise InputError(f"{path}: exists already; give --force to replace it, or name another file")


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


def refuse_source(output: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]]) -> None:
    """Keep an output from what is read, under any spelling, link or mount.

    Raises:
        InputError: one of `sources` is the file `output`, or is in the folder `output`, at any
            depth.
    """
    try:
        there = os.stat(output)
    except (OSError, ValueError):
        return  # it is nothing yet
    apart: set[Path] = set()
    for source in sources:
        for place in (Path(os.path.abspath(source)), Path(os.path.realpath(source))):
            for each in (place, *place.parents):
                if each in apart:
                    break
                with contextlib.suppress(OSError, ValueError):
                    if os.path.samestat(there, os.stat(each)):
                        why = "is" if each == place else f"holds {source}, which is"
                        raise InputError(f"{output}: {why} read here; name another output")
                if each != place:
                    apart.add(each)


def require_replaceable(path: str | os.PathLike[str]) -> tuple[Path, os.stat_result | None]:
    """The real path behind `path`, and what is there: a regular file that may be replaced, or
    nothing.

    Raises:
        InputError: something else is there, or a file that is read-only.
        OSError: it cannot be opened for writing.
    """
    target = Path(os.path.realpath(path))
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "device")
        raise InputError(f"{path}: cannot be written (it is a {kind}, and only a regular file is replaced)")
    if not found.st_mode & 0o222:  # which stops everybody but root
        raise InputError(f"{path}: cannot be written (it is read-only)")
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    if not os.path.samestat(found, os.lstat(target)):  # as where a descriptor is named whose file was removed
        raise InputError(f"{path}: cannot be written (its file has no name)")
    return target, found


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


@contextlib.contextmanager
def _begun(path: str | os.PathLike[str]) -> Iterator[tuple[int, Path, Path]]:
    """A new file beside the one that `path` leads to: its descriptor, its name, and the name to
    come. It is removed at the end unless it was renamed.
    """
    target, old = require_replaceable(path)
    mode = stat.S_IMODE(old.st_mode) & 0o777 if old else 0o666
    created = locks.created(_beside(target, "tmp"), mode, wait=True)
    assert created is not None  # as it waits
    temporary, descriptor = created
    try:
        if old:
            _take_over(path, descriptor, old)
        yield descriptor, temporary, target
    finally:
        locks.release(temporary, descriptor)


def _take_over(path: str | os.PathLike[str], descriptor: int, old: os.stat_result) -> None:
    """Give a file the owner and the mode of the one that it will replace."""
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except PermissionError as error:
            raise InputError(f"{path}: cannot be written (it would not keep its owner and group)") from error
    if stat.S_IMODE(new.st_mode) != stat.S_IMODE(old.st_mode):
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _beside(target: Path, suffix: str) -> Path:
    """The name, in the same folder, of what belongs to `target` while it is made."""
    key = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.parent / f".sprfast-{key}.{suffix}"


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable; a file system without folder sync is left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
