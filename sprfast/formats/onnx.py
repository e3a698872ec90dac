"""An ONNX file that says what it is: the graph as protobuf, and behind it one metadata entry that
holds its SHA-256.

A protobuf message may be written in parts that are read as one, so any tool reads the file;
checking it needs no ONNX library.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sprfast.errors import ModelFileError
from sprfast.formats.manifest import PathLike, field, file_bytes, signed, verified
from sprfast.formats.protobuf import delimited, fields
from sprfast.system.files import write_bytes

ENTRY = "sprfast"  # key of the metadata entry
KIND = "onnx"

_METADATA_PROPS = 14  # fields of ModelProto and StringStringEntryProto, see onnx.proto
_KEY, _VALUE = 1, 2


def write(path: PathLike, graph: bytes, document: dict[str, Any]) -> None:
    """Write a serialised `onnx.ModelProto` without metadata, and `document` (of kind `KIND`) behind
    it, atomically.

    Raises:
        InputError: the file cannot be written; the old file is unchanged.
    """
    text = signed({**document, "graph_sha256": hashlib.sha256(graph).hexdigest()}).encode()
    entry = delimited(_KEY, ENTRY.encode()) + delimited(_VALUE, text)
    write_bytes(path, graph + delimited(_METADATA_PROPS, entry))


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
    for number, start, body, end in fields(content, 0, len(content)):
        if number == _METADATA_PROPS and end == len(content):
            return start, _value(content[body:])
    raise ValueError("no metadata at the end")


def _value(entry: bytes) -> str:
    head = delimited(_KEY, ENTRY.encode())
    if not entry.startswith(head):
        raise ValueError("the metadata is another tool's")
    found = list(fields(entry, len(head), len(entry)))
    if [(number, end) for number, _, _, end in found] != [(_VALUE, len(entry))]:
        raise ValueError("the metadata entry has no value")
    return entry[found[0][2] :].decode("utf-8")
