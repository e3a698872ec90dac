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
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sprfast.errors import ModelFileError
from sprfast.files import write_bytes

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 16 * 2**20
MAX_DIGITS = 64  # of an integer in the header, far more than any field needs

Kind = Literal["model", "checkpoint"]
PathLike = str | os.PathLike[str]
_T = TypeVar("_T")

_ENTRY = "sprfast"  # of safetensors' `__metadata__`
_DTYPES = {  # safetensors' codes of what an archive may hold
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write(path: PathLike, tensors: Mapping[str, Tensor], document: dict[str, Any], *, kind: Kind) -> None:
    """Write `tensors` and `document` to `path`, atomically; equal content gives equal bytes.

    Args:
        path: the file; an existing one is replaced once the new one is complete.
        tensors: names to tensors of any shape, dtype (float, int, uint8, bool) and device. They must
            not share memory; floating-point values must be finite.
        document: anything JSON can hold: string keys, no NaN or infinity.
        kind: what `read` must ask for.

    Raises:
        ModelFileError: a tensor or the document cannot be stored.
        InputError: the file cannot be written; the old file is unchanged.
    """
    dense = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    for name, tensor in dense.items():
        if tensor.dtype not in _DTYPES.values():
            raise ModelFileError(f"{path}: tensor {quoted(name)} is {_dtype_name(tensor)}, allowed are {_allowed_dtypes()}")
        _require_finite(path, name, tensor)
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "document": document,
        "tensors": {name: _description(tensor) for name, tensor in dense.items()},
    }
    try:
        text = _signed(manifest)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the document cannot be stored as JSON ({error})") from error
    content = safetensors.torch.save(dense, {_ENTRY: text})
    _manifest(path, content, kind)  # what `read` would refuse is never written
    write_bytes(path, content)


def read(path: PathLike, *, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the document of a file that `write` made, after every check.

    The file is read once, so what was checked is what is returned; it is never unpickled and
    nothing in it is run. What these checks cannot notice is said at the top of this module.

    Raises:
        ModelFileError: the file is missing, foreign, damaged, of another kind or from a newer
            version; the message names the file and the tensor or field.
    """
    content = file_bytes(path)
    manifest = _manifest(path, content, kind)
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path}: the file is damaged, its tensors do not match its header ({error})") from error
    _check_tensors(path, tensors, field(path, manifest, "tensors", dict))
    return tensors, field(path, manifest, "document", dict)


def file_bytes(path: PathLike) -> bytes:
    """The whole content of a regular file, links followed.

    Raises:
        ModelFileError: there is no such regular file, or it cannot be read.
    """
    if not Path(path).is_file():
        raise ModelFileError(f"{path}: {'not a regular file' if os.path.lexists(path) else 'no such file'}")
    try:
        return Path(path).read_bytes()
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


def _manifest(path: PathLike, content: bytes, kind: Kind) -> dict[str, Any]:
    """The manifest of a file's content, after every check that needs no tensor data."""
    entries = _header(path, content)
    text = field(path, field(path, entries, "__metadata__", dict), _ENTRY, str)
    manifest = _parsed(path, text)
    version = field(path, manifest, "format_version", int)
    if not 1 <= version <= FORMAT_VERSION:
        raise ModelFileError(f"{path}: has format {version}, this sprfast reads up to {FORMAT_VERSION}: upgrade sprfast")
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    # compared as text, since a flipped bit can leave the parsed value as it was (1e-05 and 1E-05)
    if text != _signed(body):
        raise ModelFileError(f"{path}: the manifest does not match its own sha256, the file is damaged")
    if field(path, manifest, "kind", str) != kind:
        raise ModelFileError(f"{path}: is a {quoted(manifest['kind'])} file, expected a {kind!r} file")
    for name, entry in entries.items():
        if name != "__metadata__" and (not isinstance(entry, dict) or str(entry.get("dtype")) not in _DTYPES):
            raise ModelFileError(f"{path}: the header says no allowed dtype of tensor {quoted(name)}, allowed are {_allowed_dtypes()}")
    return manifest


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
    return _parsed(path, text)


def _check_tensors(path: PathLike, tensors: Mapping[str, Tensor], expected: Mapping[str, Any]) -> None:
    for name in sorted(expected.keys() ^ tensors.keys()):
        raise ModelFileError(f"{path}: tensor {quoted(name)} is {'missing' if name in expected else 'not in the manifest'}")
    for name, tensor in tensors.items():
        claimed = field(path, expected, name, dict)
        for key, got in _description(tensor).items():
            if claimed.get(key) != got:
                raise ModelFileError(
                    f"{path}: tensor {quoted(name)} has {key} {got}, expected {quoted(claimed.get(key))}: the file is damaged"
                )
        _require_finite(path, name, tensor)


def _description(tensor: Tensor) -> dict[str, Any]:
    """What the manifest says of a contiguous tensor on the CPU."""
    data = tensor.reshape(-1).view(torch.uint8).numpy().data  # (bytes,), no copy
    return {"shape": list(tensor.shape), "dtype": _dtype_name(tensor), "sha256": hashlib.sha256(data).hexdigest()}


def _require_finite(path: PathLike, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ModelFileError(f"{path}: tensor {quoted(name)} holds NaN or infinity, expected finite numbers")


def _signed(manifest: dict[str, Any]) -> str:
    digest = hashlib.sha256(_canonical(manifest).encode()).hexdigest()
    return _canonical({**manifest, "sha256": digest})


def _canonical(value: dict[str, Any]) -> str:
    """The one text of a JSON value: ASCII, sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _parsed(path: PathLike, text: str) -> dict[str, Any]:
    """A JSON object without duplicate keys, numbers out of range or nesting beyond Python's limit."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite, parse_int=_short_integer)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the header is not the JSON of a model file ({error})") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: the header is {type(value).__name__}, expected an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {quoted(next(name for name in value if names.count(name) > 1))}")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {quoted(text)} is not finite")
    return value


def _short_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits, allowed up to {MAX_DIGITS}")
    return int(text)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _allowed_dtypes() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES.values())
