"""Signed JSON documents in files: what the files of this package say of themselves, and how it is
checked.

The hash notices damage and careless edits; it does not protect against a malicious author, who can
compute it anew.
"""

from __future__ import annotations

import collections
import hashlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from sprfast.errors import ModelFileError
from sprfast.system.reading import open_regular

FORMAT_VERSION = 3
MAX_BYTES = 2**31  # of a file that is read whole; as many as an ONNX file can have
MAX_DIGITS = 64  # of an integer in a document, far more than any field needs

PathLike = str | os.PathLike[str]
_T = TypeVar("_T")


def signed(document: Mapping[str, Any]) -> str:
    """`document` as JSON text with its own SHA-256 in the field `sha256`; equal documents give
    equal texts.

    Raises:
        TypeError, ValueError, RecursionError: JSON cannot hold it.
    """
    digest = hashlib.sha256(_canonical(document).encode()).hexdigest()
    return _canonical({**document, "sha256": digest})


def verified(path: PathLike, text: str, kind: str) -> dict[str, Any]:
    """The document of `signed`, which must be of this kind and of a version that is known.

    Raises:
        ModelFileError: it is damaged, of another kind or from a newer version; the message names
            `path`.
    """
    document = parsed(path, text)
    version = field(path, document, "format_version", int)
    if not 1 <= version <= FORMAT_VERSION:
        raise ModelFileError(f"{path}: has format {version}, this one reads up to {FORMAT_VERSION}: upgrade sprfast")
    body = {name: value for name, value in document.items() if name != "sha256"}
    try:
        expected = signed(body)
    except RecursionError as error:  # writing goes a little deeper than reading
        raise ModelFileError(f"{path}: the manifest is nested too deeply") from error
    # compared as text, since a flipped bit can leave the parsed value as it was (1e-05 and 1E-05)
    if text != expected:
        raise ModelFileError(f"{path}: the manifest does not match its own sha256, the file is damaged")
    if field(path, document, "kind", str) != kind:
        raise ModelFileError(f"{path}: is a {quoted(document['kind'])} file, expected a {kind!r} file")
    return document


def file_bytes(path: PathLike) -> bytes:
    """The whole content of a regular file, links followed.

    Raises:
        ModelFileError: there is no such regular file, it cannot be read, or it has more than 2 GiB.
    """
    try:
        with open_regular(path) as stream:
            length = os.fstat(stream.fileno()).st_size
            if length > MAX_BYTES:
                raise ModelFileError(f"{path}: {length} bytes, a file of a model has up to {MAX_BYTES}")
            return stream.readall()
    except (FileNotFoundError, ValueError) as error:  # ValueError: a NUL in the name
        raise ModelFileError(f"{path}: no such file") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from error
    except MemoryError as error:
        raise ModelFileError(f"{path}: too large for the memory of this machine") from error


def field(path: PathLike, mapping: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """`mapping[name]`, which must be exactly of the type `kind`.

    Raises:
        ModelFileError: it is missing or of another type; the message names `path` and `name`.
    """
    if name not in mapping:
        raise ModelFileError(f"{path}: field {quoted(name)} is missing")
    value = mapping[name]
    if type(value) is not kind:
        raise ModelFileError(f"{path}: field {quoted(name)} is {type(value).__name__}, expected {kind.__name__}")
    return value


def quoted(value: Any) -> str:
    """Fit for a message: a name from a file may be long or hold control characters."""
    text = ascii(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _canonical(value: Mapping[str, Any]) -> str:
    """The one text of a JSON value: ASCII, sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parsed(path: PathLike, text: str) -> dict[str, Any]:
    """A JSON object without duplicate keys, numbers out of range or nesting beyond Python's
    limit.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite, parse_int=_short_integer
        )
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the header is not the JSON of a model file ({error})") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: the header is {type(value).__name__}, expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"duplicate key {quoted(counts.most_common(1)[0][0])}")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {quoted(text)} is not finite")
    return value


def _short_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits, allowed up to {MAX_DIGITS}")
    return int(text)
