"""What was built for this machine, kept in a folder of the user's own.

An entry is a pair of files: what was built, and a signed document with its SHA-256, the whole key
and a certificate. A TensorRT plan is code, so that nothing is handed out of a folder or a file that
others could have written, nor bytes that are not those that were stored under this very key.
Whatever does not hold is a miss, with the reason, and is built again.

The hashes notice damage; that nobody else writes here is what the permissions are for.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import secrets
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sprfast.errors import BackendError, ModelFileError, SprfastWarning
from sprfast.formats.manifest import FORMAT_VERSION, field, signed, verified
from sprfast.formats.protobuf import fields, varint

VARIABLE = "SPRFAST_CACHE_DIR"
MAX_DOCUMENT_BYTES = 2**20

Key = Mapping[str, Any]  # all that an entry depends on; plain values

# the last for pipes, which are refused once they are open
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class MissError(Exception):
    """There is no entry, or with a reason none that may be used."""


class PlanCache:
    """Entries of one kind in one folder; several processes may read and write the same ones.

    Args:
        kind: of the entries, such as "plan"; the files' suffix.

    Raises:
        BackendError: the folder is not the user's own.
    """

    def __init__(self, kind: str) -> None:
        self.folder = default_folder()
        self._kind = kind

    def load(self, key: Key) -> bytes:
        """What is stored under this key, after every check.

        Raises:
            MissError: there is nothing that may be used.
            BackendError: the folder is not the user's own any more.
        """
        stored, described = self._names(key)
        path = self.folder / described
        with self._locked(fcntl.LOCK_SH) as folder:
            if not os.path.lexists(path) and not os.path.lexists(self.folder / stored):
                raise MissError
            try:
                text = _content(folder, described, MAX_DOCUMENT_BYTES).decode("ascii")
                content = _content(folder, stored)
            except (OSError, ValueError) as error:
                raise MissError(f"{path}: cannot be used ({error})") from error
        try:
            document = verified(path, text, self._kind)
            if field(path, document, "key", dict) != _plain(key):
                raise MissError(f"{path}: was made for another key")
            if field(path, document, "content_sha256", str) != hashlib.sha256(content).hexdigest():
                raise MissError(f"{self.folder / stored}: does not match its sha256, the file is damaged")
        except ModelFileError as error:
            raise MissError(str(error)) from error
        return content

    def store(self, key: Key, content: bytes, certificate: Mapping[str, Any]) -> None:
        """Keep `content` for the next time; where that fails, such as on a full disk, there is a
        warning and no entry.

        Raises:
            BackendError: the folder is not the user's own any more.
        """
        stored, described = self._names(key)
        document = signed(
            {
                "format_version": FORMAT_VERSION,
                "kind": self._kind,
                "key": _plain(key),
                "content_sha256": hashlib.sha256(content).hexdigest(),
                "certificate": dict(certificate),
            }
        )
        try:
            with (
                self._locked(fcntl.LOCK_EX) as folder,  # so that the two files are of one writer
                _temporary(folder, content) as first,
                _temporary(folder, document.encode()) as second,
            ):
                os.replace(first, stored, src_dir_fd=folder, dst_dir_fd=folder)
                os.replace(second, described, src_dir_fd=folder, dst_dir_fd=folder)
                os.fsync(folder)
        except OSError as error:
            warnings.warn(
                f"{self.folder}: what was built could not be kept ({error.strerror}); it will be built again",
                SprfastWarning,
                stacklevel=2,
            )

    def discard(self, key: Key) -> None:
        """Remove an entry that turned out to be bad."""
        with self._locked(fcntl.LOCK_EX) as folder:
            for name in self._names(key):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)

    def _names(self, key: Key) -> tuple[str, str]:
        """Of the files of what is stored, and of its document."""
        canonical = json.dumps({"kind": self._kind, "key": _plain(key)}, sort_keys=True, separators=(",", ":"))
        name = hashlib.sha256(canonical.encode()).hexdigest()
        return f"{name}.{self._kind}", f"{name}.json"

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[int]:
        """The open folder, locked where the file system can: a mixed pair is only a miss."""
        with _opened(self.folder) as folder:  # which ends the lock too
            with contextlib.suppress(OSError):
                fcntl.flock(folder, kind)
            yield folder


def structure_sha256(onnx: bytes) -> str:
    """Hash of a serialised ONNX model without the values of its float initializers, so that models
    of one structure have one hash.

    Initializers of a few values count as structure: they may be parameters of an operator, such as
    the scales of a Resize, which become part of a plan.

    Raises:
        BackendError: it is not an ONNX model.
    """
    digest = hashlib.sha256()
    try:
        for start, end in _without_weights(onnx):
            digest.update(memoryview(onnx)[start:end])
    except (IndexError, ValueError) as error:
        raise BackendError("graph: not an ONNX model; export it again") from error
    return digest.hexdigest()


# Fields of ModelProto, GraphProto and TensorProto, see onnx.proto.
_GRAPH, _INITIALIZER, _DATA_TYPE, _RAW_DATA = 7, 5, 2, 9
_FLOATS = {1, 10, 11, 16}  # TensorProto.DataType: float32, float16, float64, bfloat16
_FEW_BYTES = 32


def _without_weights(onnx: bytes) -> Iterator[tuple[int, int]]:
    """Parts of a serialised model."""
    for number, start, body, end in fields(onnx, 0, len(onnx)):
        if number != _GRAPH:
            yield start, end
            continue
        yield start, body
        for inner, inner_start, inner_body, inner_end in fields(onnx, body, end):
            values = _values(onnx, inner_body, inner_end) if inner == _INITIALIZER else None
            if values is None:
                yield inner_start, inner_end
            else:
                yield inner_start, values[0]
                yield values[1], inner_end


def _values(onnx: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Where a tensor has its values, if they are weights."""
    found, data_type = None, 0
    for number, _, body, field_end in fields(onnx, start, end):
        if number == _DATA_TYPE:
            data_type = varint(onnx, body)[0]
        elif number == _RAW_DATA:
            found = (body, field_end)
    return found if found and data_type in _FLOATS and found[1] - found[0] > _FEW_BYTES else None


def default_folder() -> Path:
    """$SPRFAST_CACHE_DIR, else `sprfast` in $XDG_CACHE_HOME or ~/.cache; made if need be, for this
    user alone.

    Where it cannot be written it is a temporary folder that lives as long as this process, and
    there is a warning.

    Raises:
        BackendError: others could write there.
    """
    chosen = os.environ.get(VARIABLE)
    folder = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sprfast"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        with _opened(folder) as opened, _temporary(opened, b""):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        return Path(_temporary_folder(str(folder), str(error)).name)
    return folder


@functools.cache
def _temporary_folder(instead_of: str, reason: str) -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends, and with it this function's cache."""
    warnings.warn(
        f"{instead_of}: cannot be written ({reason}), so that plans are built anew by each process; set {VARIABLE}",
        SprfastWarning,
        stacklevel=3,
    )
    return tempfile.TemporaryDirectory(prefix="sprfast-")


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The open folder, which must be this user's and nobody else's to write."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError as error:
        if folder.is_symlink():
            raise BackendError(
                f"{folder}: is a symbolic link, the cache must be a folder itself; set {VARIABLE} to one"
            ) from error
        raise
    try:
        if problem := _not_ours(os.fstat(descriptor)):
            remedy = f"run chmod 700 as its owner, or set {VARIABLE} to a folder of your own"
            raise BackendError(f"{folder}: {problem}, and plans are code; {remedy}")
        yield descriptor
    finally:
        os.close(descriptor)


def _not_ours(status: os.stat_result) -> str | None:
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not to {os.geteuid()}"
    if status.st_mode & _OTHERS_WRITE:
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _content(folder: int, name: str, limit: int | None = None) -> bytes:
    """A regular file of this user's, no link; OSError or ValueError says what is wrong."""
    descriptor = os.open(name, _READ, dir_fd=folder)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a regular file")
        if problem := _not_ours(status):
            raise ValueError(f"{name} {problem}")
        if limit is not None and status.st_size > limit:
            raise ValueError(f"{name} has {status.st_size} bytes, allowed up to {limit}")
        return stream.read()


@contextlib.contextmanager
def _temporary(folder: int, content: bytes) -> Iterator[str]:
    """The name of a new file with this content, on the disk; removed unless it was renamed."""
    name = f".{secrets.token_hex(8)}.tmp"
    descriptor = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def _plain(key: Key) -> Any:
    """The key with the types that JSON gives back."""
    return json.loads(json.dumps(key))
