"""The files that `sprfast export` writes, and what is in them: a metadata, and the network as an
ONNX graph or as a plan.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from sprfast.errors import InputError, ModelFileError
from sprfast.formats import onnx, tensors
from sprfast.formats.export_metadata import ExportMetadata, document_of
from sprfast.formats.manifest import PathLike, file_bytes
from sprfast.method.folded import FoldedModel, from_arrays

Kind = Literal["model", "plan", "onnx"]

_ONNX_BEGIN = b"\x08"  # the field ir_version


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """One export; either `graph` or `folded` is there."""

    metadata: ExportMetadata
    graph: bytes | None  # an ONNX model without metadata
    folded: FoldedModel | None


def kind(path: PathLike) -> Kind:
    """What a file of this package is, by its first bytes and its own word, which `read` and
    `formats.model.load` check.

    Raises:
        ModelFileError: it is none of them, or cannot be read.
    """
    content = file_bytes(path)
    if content.startswith(_ONNX_BEGIN) and content[8:9] != b"{":  # which is where the header of safetensors begins
        return "onnx"
    return "plan" if tensors.kind(path) == "plan" else "model"


def write(path: PathLike, export: Export) -> None:
    """Write an export, atomically; equal ones give equal bytes.

    Raises:
        InputError: the file cannot be written; the old file is unchanged.
    """
    metadata = export.metadata
    if export.folded is not None:
        tensors.write(path, export.folded.to_arrays(), metadata.to_json(), kind="plan")
    elif export.graph is not None:
        onnx.write(path, export.graph, document_of(metadata, onnx.KIND))


def read(path: PathLike) -> Export:
    """An export, after every check of its file.

    Raises:
        ModelFileError: the file is missing, damaged, foreign, from a newer version, or a model
            file.
    """
    found = kind(path)
    if found == "model":
        raise ModelFileError(
            f"{path}: is a model file, not an export; run `sprfast export` on it first, or open it with sprfast.load"
        )
    try:
        if found == "onnx":
            graph, document = onnx.read(path)
            return Export(ExportMetadata.from_json(document), graph, None)
        arrays, document = tensors.read(path, kind="plan")
        metadata = ExportMetadata.from_json(document)
        mode = metadata.scoring_mode
        return Export(metadata, None, from_arrays(metadata.network, mode.schedule.draws, arrays, mode.window))
    except InputError as error:
        raise ModelFileError(f"{path}: {error}") from error
