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
from sprfast.formats.protobuf import delimited, varint
from sprfast.system.files import write_bytes

KIND = "onnx"

_METADATA_PROPS = 14  # fields of ModelProto and StringStringEntryProto, see onnx.proto
_KEY, _VALUE = 1, 2
_BEGIN = delimited(_KEY, b"sprfast")  # of the metadata entry


def write(path: PathLike, graph: bytes, document: dict[str, Any]) -> None:
    """Write a serialised `onnx.ModelProto` without metadata, and `document` (of kind `KIND`) behind
    it, atomically.

    Raises:
        InputError: the file cannot be written; the old file is unchanged.
    """
    text = signed({**document, "graph_sha256": hashlib.sha256(graph).hexdigest()})
    write_bytes(path, graph + _entry(text))


def read(path: PathLike) -> tuple[bytes, dict[str, Any]]:
    """The graph and the document of a file that `write` made, after every check.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
    """
    content = file_bytes(path)
    try:
        _, body = varint(content, content.rindex(_BEGIN) + len(_BEGIN) + 1)
        text = content[body:].decode()
        if not content.endswith(entry := _entry(text)):  # which is written again to be compared
            raise ValueError("not the last field")
    except (IndexError, ValueError) as error:
        raise ModelFileError(f"{path}: not an ONNX file that `sprfast export` wrote, or cut short") from error
    document = verified(path, text, KIND)
    graph = content.removesuffix(entry)
    if field(path, document, "graph_sha256", str) != hashlib.sha256(graph).hexdigest():
        raise ModelFileError(f"{path}: the graph does not match its sha256, the file is damaged")
    return graph, document


def _entry(text: str) -> bytes:
    """The metadata entry as a field of the model."""
    return delimited(_METADATA_PROPS, _BEGIN + delimited(_VALUE, text.encode()))
