"""One safetensors file whose manifest notices every change.

safetensors reads without running anything, but it accepts a flipped bit in the data, duplicate
names and NaN. So each file carries, in the metadata entry `sprfast`, a JSON manifest with shape,
dtype and SHA-256 of every tensor and a SHA-256 of itself, and nothing is handed out before all of
it holds.

The hashes notice damage, truncation and careless edits. They do not protect against a malicious
author, who can compute them anew: such a file still cannot run code, but its numbers are the
author's. Take model files from people you trust.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from sprfast.errors import ModelFileError
from sprfast.formats.manifest import FORMAT_VERSION, PathLike, field, file_bytes, parsed, quoted, signed, verified
from sprfast.system.files import write_bytes

MAX_HEADER_BYTES = 16 * 2**20

Kind = Literal["model", "checkpoint", "plan"]
Array = npt.NDArray[Any]

_ENTRY = "sprfast"  # of safetensors' `__metadata__`
_DTYPES = {  # safetensors' codes of what an archive may hold
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_ALLOWED = ", ".join(_DTYPES.values())


def write(path: PathLike, tensors: Mapping[str, Array], document: dict[str, Any], *, kind: Kind) -> None:
    """Write `tensors` and `document` to `path`, atomically; equal content gives equal bytes.

    Args:
        path: the file; an existing one is replaced once the new one is complete.
        tensors: names to arrays of any shape and dtype (float, int, uint8, bool); floating-point
            values must be finite.
        document: anything JSON can hold: string keys, no NaN or infinity.
        kind: what `read` must ask for.

    Raises:
        ModelFileError: a tensor or the document cannot be stored.
        InputError: the file cannot be written; the old file is unchanged.
    """
    dense = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    for name, tensor in dense.items():
        if tensor.dtype.name not in _DTYPES.values():
            raise ModelFileError(f"{path}: tensor {quoted(name)} is {tensor.dtype}, allowed are {_ALLOWED}")
        _require_finite(path, name, tensor)
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "document": document,
        "tensors": {name: _description(tensor) for name, tensor in dense.items()},
    }
    try:
        text = signed(manifest)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the document cannot be stored as JSON ({error})") from error
    content = safetensors.numpy.save(dense, {_ENTRY: text})
    _manifest(path, content, kind)  # what `read` would refuse is never written
    write_bytes(path, content)


def read(path: PathLike, *, kind: Kind) -> tuple[dict[str, Array], dict[str, Any]]:
    """The tensors and the document of a file that `write` made, after every check.

    The file is read once, so what was checked is what is returned; it is never unpickled and
    nothing in it is run. What these checks cannot notice is said at the top of this module.

    Raises:
        ModelFileError: the file is missing, foreign, damaged, of another kind or from a newer
            version; the message names the file and the tensor or field.
    """
    content = file_bytes(path)
    manifest = _manifest(path, content, kind)
    try:
        # what is loaded cannot be written
        tensors = {name: tensor.copy() for name, tensor in safetensors.numpy.load(content).items()}
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path}: the file is damaged, its tensors do not match its header ({error})") from error
    _check_tensors(path, tensors, field(path, manifest, "tensors", dict))
    return tensors, field(path, manifest, "document", dict)


def kind(path: PathLike) -> str:
    """What a file that `write` made calls itself; `read` checks that it is so.

    Raises:
        ModelFileError: the file is missing, foreign or damaged.
    """
    return field(path, parsed(path, _signed_text(path, _header(path, file_bytes(path)))), "kind", str)


def _manifest(path: PathLike, content: bytes, kind: Kind) -> dict[str, Any]:
    """The manifest of a file's content, after every check that needs no tensor data."""
    entries = _header(path, content)
    manifest = verified(path, _signed_text(path, entries), kind)
    for name, entry in entries.items():
        if name != "__metadata__" and (not isinstance(entry, dict) or str(entry.get("dtype")) not in _DTYPES):
            raise ModelFileError(
                f"{path}: the header says no allowed dtype of tensor {quoted(name)}, allowed are {_ALLOWED}"
            )
    return manifest


def _signed_text(path: PathLike, entries: Mapping[str, Any]) -> str:
    return field(path, field(path, entries, "__metadata__", dict), _ENTRY, str)


def _header(path: PathLike, content: bytes) -> dict[str, Any]:
    """safetensors' own header: names to dtype, shape and offsets."""
    length = int.from_bytes(content[:8], "little")
    allowed = min(MAX_HEADER_BYTES, len(content) - 8)
    if not 2 <= length <= allowed:
        raise ModelFileError(
            f"{path}: not a safetensors file, or cut short (a header of {length} bytes in a file of {len(content)}, "
            f"allowed up to {MAX_HEADER_BYTES}); a published .pth checkpoint goes through `sprfast import` first"
        )
    try:
        text = content[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: the header is damaged ({error})") from error
    return parsed(path, text)


def _check_tensors(path: PathLike, tensors: Mapping[str, Array], expected: Mapping[str, Any]) -> None:
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise ModelFileError(
            f"{path}: tensor {quoted(name)} is {'missing' if name in expected else 'not in the manifest'}"
        )
    for name, tensor in tensors.items():
        claimed = field(path, expected, name, dict)
        for key, got in _description(tensor).items():
            if claimed.get(key) != got:
                raise ModelFileError(
                    f"{path}: tensor {quoted(name)} has {key} {got}, expected {quoted(claimed.get(key))}: the file "
                    f"is damaged"
                )
        _require_finite(path, name, tensor)


def _description(tensor: Array) -> dict[str, Any]:
    """What the manifest says of a contiguous tensor."""
    data = tensor.reshape(-1).view(np.uint8).data  # no copy
    return {"shape": list(tensor.shape), "dtype": tensor.dtype.name, "sha256": hashlib.sha256(data).hexdigest()}


def _require_finite(path: PathLike, name: str, tensor: Array) -> None:
    if not np.isfinite(tensor).all():
        raise ModelFileError(f"{path}: tensor {quoted(name)} holds NaN or infinity, expected finite numbers")
