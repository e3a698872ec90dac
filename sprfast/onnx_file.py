"""An ONNX file that says what it is: the graph as protobuf, and behind it one metadata entry that holds its SHA-256.

A protobuf message may be written in parts that are read as one, so any tool reads the file; checking it needs no ONNX library.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sprfast.errors import ModelFileError
from sprfast.files import write_bytes
from sprfast.manifest import PathLike, field, file_bytes, signed, verified

ENTRY = "sprfast"  # key of the metadata entry
KIND = "onnx"

_METADATA_PROPS = 14  # fields of ModelProto and StringStringEntryProto, see onnx.proto
_KEY, _VALUE = 1, 2
_LENGTH_DELIMITED = 2  # wire type


def write(path: PathLike, graph: bytes, document: dict[str, Any]) -> None:
    """Write a serialised `onnx.ModelProto` without metadata, and `document` (of kind `KIND`) behind it, atomically.

    Raises:
        InputError: the file cannot be written; the old file is unchanged.
    """
    text = signed({**document, "graph_sha256": hashlib.sha256(graph).hexdigest()}).encode()
    entry = _delimited(_KEY, ENTRY.encode()) + _delimited(_VALUE, text)
    write_bytes(path, graph + _delimited(_METADATA_PROPS, entry))


def read(path: PathLike) -> tuple[bytes, dict[str, Any]]:
    """The graph and the document of a file that `write` made, after every check.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
    """
    content = file_bytes(path)
    try:
        start, text = _entry(content)
    except (IndexError, ValueError) as error:
        raise ModelFileError(f"{path}: not an ONNX file that `sprfast export` wrote, or cut short") from error
    document = verified(path, text, KIND)
    graph = content[:start]
    if field(path, document, "graph_sha256", str) != hashlib.sha256(graph).hexdigest():
        raise ModelFileError(f"{path}: the graph does not match its sha256, the file is damaged")
    return graph, document


def _entry(content: bytes) -> tuple[int, str]:
    """Where our metadata entry begins, and its value; it must be the last field."""
    at = 0
    while at < len(content):
        start = at
        key, at = _varint(content, at)
        if key & 7 == _LENGTH_DELIMITED:
            length, at = _varint(content, at)
            at += length
            if key >> 3 == _METADATA_PROPS and at == len(content):
                return start, _value(content[at - length :])
        elif key & 7 == 0:
            _, at = _varint(content, at)
        else:
            raise ValueError("a field of another type than ModelProto has")
    raise ValueError("no metadata at the end")


def _value(entry: bytes) -> str:
    head = _delimited(_KEY, ENTRY.encode())
    if not entry.startswith(head):
        raise ValueError("the metadata is another tool's")
    key, at = _varint(entry, len(head))
    length, at = _varint(entry, at)
    if key != _VALUE << 3 | _LENGTH_DELIMITED or at + length != len(entry):
        raise ValueError("the metadata entry has no value")
    return entry[at:].decode("utf-8")


def _delimited(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _encoded(number << 3 | _LENGTH_DELIMITED) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next field begins; IndexError beyond the end."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
