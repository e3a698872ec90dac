"""A model as a file that runs without PyTorch, with a certificate that it scores like the
definition.

`onnx` is a graph for onnxruntime and whatever else reads ONNX, `tensorrt` the same network in the
nodes that TensorRT has kernels of its own for, and `plan` the folded weights for our CPU kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sprfast._version import __version__
from sprfast.backends.sessions import cpu, session
from sprfast.config import Precision
from sprfast.data.images import load_image
from sprfast.engine.predictor import input_size
from sprfast.engine.runner import Runner
from sprfast.errors import BackendError, CheckFailedError, InputError
from sprfast.evaluation import parity
from sprfast.evaluation.parity import Report
from sprfast.formats import export as export_file
from sprfast.formats import trained_on
from sprfast.formats.export import Export
from sprfast.formats.export_metadata import MAX_BATCH, ExportMetadata, Map, Quantization, tolerance
from sprfast.formats.manifest import PathLike
from sprfast.formats.model import Model
from sprfast.lowering.fold import fold
from sprfast.lowering.onnx_graph import onnx_model
from sprfast.lowering.probe import probe
from sprfast.method import noise, tiles
from sprfast.method.folded import MIN_SIZE, FoldedModel
from sprfast.system import environment
from sprfast.system.files import check_writable

Target = Literal["onnx", "tensorrt", "plan"]

IMAGES = 32  # that a certificate and the scales of a quantization are from, at most


@dataclasses.dataclass(frozen=True)
class Request:
    """What to export."""

    target: Target
    # at the network's input; None: the error field's, else the model's, square. Not of a plan
    size: tuple[int, int] | None = None
    batch: int | None = None  # images a call that a graph is fixed to; None: any number
    precision: Precision = "float32"  # of the convolutions, and of stored feature maps but in a plan
    quantization: Quantization | None = None  # of the convolutions but the first

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("--to", self.target, get_args(Target)),
            ("--precision", self.precision, get_args(Precision)),
            ("--quantize", self.quantization, (None, *get_args(Quantization))),
        ):
            if value not in allowed:
                raise InputError(
                    f"{name} {value}: not known, choose from {', '.join(name for name in allowed if name)}"
                )
        if self.size is not None and min(self.size) < MIN_SIZE:
            raise InputError(f"--size {self.size[0]}x{self.size[1]}: expected at least {MIN_SIZE} pixels on each side")
        if self.batch is not None and not 1 <= self.batch <= MAX_BATCH:
            raise InputError(f"--batch {self.batch}: expected 1 to {MAX_BATCH} images")
        if self.target == "plan" and (self.size or self.batch or self.quantization or self.precision == "float16"):
            raise InputError(
                "--to plan: takes no size, batch, quantization or float16, since our CPU kernels run any size in "
                "float32 or bfloat16"
            )


def export(model: Model, path: PathLike, request: Request, images: Sequence[Path] = ()) -> ExportMetadata:
    """Write `model` to `path` as `request` says, once it has been found to score like the
    definition.

    Args:
        model: what is exported, its threshold included.
        path: the file.
        request: in which form.
        images: of good parts, none of them trained on: up to `IMAGES` of them, spread over all, are
            what the certificate compares scores on, and what the scales of a quantization are from,
            which needs them.

    Returns:
        the metadata in the file; its certificate says what was compared.

    Raises:
        InputError: an image cannot be used, or is not of the exported size; that size is not the
            error field's; or the file cannot be written.
        BackendError: what checks the export is not installed.
        CheckFailedError: the export does not score like the definition; nothing is written.
    """
    check_writable(path)
    chosen = images[:: -(-len(images) // IMAGES)] if images else []
    folded = fold(model)
    field = model.scoring_mode.error_field
    size = request.size or input_size(model.scoring_mode, model.preprocessing)
    if field:
        field.require_size(size, "export")
    size = tiles.shape(size, model.scoring_mode.tile)
    metadata = ExportMetadata(
        network=model.network,
        scoring_mode=model.scoring_mode,
        preprocessing=model.preprocessing,
        noise_seed=model.noise_seed,
        model_sha256=model.sha256,
        precision=request.precision,
        quantization=request.quantization,
        size=None if request.target == "plan" else size,
        batch=request.batch,
        probe=probe(model, *size, tolerance(request.precision, request.quantization)),
        trained_on=str(model.provenance.get(trained_on.FIELD, "")),
        category=str(model.provenance.get("category", "")),
    )
    graph = None if request.target == "plan" else _graph(model, folded, metadata, request, chosen)
    made = Export(metadata, graph, None if graph else folded)
    metadata = dataclasses.replace(metadata, certificates=(_certificate(model, made, chosen),))
    export_file.write(path, dataclasses.replace(made, metadata=metadata))
    return metadata


def check(model: Model, exported: Runner, paths: Sequence[PathLike]) -> Report:
    """The images through an export and through the definition of the model that it was made from.

    What a quantization changes is for the user to weigh, so that there a verdict that flips is no
    failure.

    Raises:
        InputError: it was made from another model; or an image cannot be used, or is not of the
            exported size.
        BackendError: the backend failed.
    """
    metadata = exported.metadata
    if metadata.model_sha256 != model.sha256:
        raise InputError("parity: the export was made from another model than the one given")

    def maps(x: Map) -> tuple[Map, Map]:
        metadata.require_size(x.shape[2:], "image")
        return exported.maps(x)

    flips = None if metadata.quantization else 0.0
    rows = parity.image_rows(
        dataclasses.replace(model, scoring_mode=metadata.scoring_mode),
        paths,
        maps,
        tolerance(metadata.precision, metadata.quantization),
        flips,
    )
    return Report(exported.backend, metadata.precision, exported.device, len(paths), rows)


def _graph(
    model: Model, folded: FoldedModel, metadata: ExportMetadata, request: Request, images: Sequence[Path]
) -> bytes:
    """The ONNX model, with scales from `images` where it is quantized."""
    assert metadata.size is not None  # of a graph it is known
    scales: Mapping[str, float] | None = None
    if request.quantization:
        from sprfast.deploy import quantization  # what it needs of onnxruntime takes a second to import

        if not images:
            raise InputError(
                f"--quantize {request.quantization}: needs good images that were not trained on: give --images DIR"
            )
        inputs = []
        for path in images:
            pixels = load_image(path, metadata.preprocessing).pixels
            metadata.require_size(pixels.shape[1:], str(path))
            inputs.append(tiles.cut(pixels, model.scoring_mode.tile))
        draws = noise.stacked(model.schedule, *metadata.size, model.noise_seed)
        scales = quantization.calibrate(folded, np.concatenate(inputs), draws, request.quantization)
    graph: bytes = onnx_model(
        folded,
        *metadata.size,
        batch=request.batch,
        precision=request.precision,
        normalization="group" if request.target == "tensorrt" else "instance",
        quantization=request.quantization,
        scales=scales,
    ).SerializeToString()
    return graph


def _certificate(model: Model, made: Export, images: Sequence[Path]) -> dict[str, Any]:
    """What was compared with the definition, and how well it agreed.

    Raises:
        CheckFailedError: not well enough.
    """
    metadata = made.metadata
    backend, library = "cpu", "sprfast's CPU kernels"
    if made.graph is not None:
        backend, library = "onnxruntime", f"onnxruntime {environment.version('onnxruntime')}"
    certificate: dict[str, Any] = {"by": library, "sprfast": __version__, "images": len(images)}
    not_checked = None
    if metadata.precision == "bfloat16":
        missing = "onnxruntime has no bfloat16 convolution on a CPU" if made.graph else cpu.unavailable("bfloat16")
        not_checked = missing and f"{missing}; who loads it checks the probe"
    if not_checked:
        return certificate | {"images": 0, "not_checked": not_checked}
    if reason := session.unavailable(backend):
        raise BackendError(f"export: the check by backend {backend} {reason}")
    try:
        checked = Runner(made, backend, "cpu")
    except BackendError as error:
        raise CheckFailedError(f"export: {error}; no file was written") from error
    rows = check(model, checked, images).rows if images else ()
    for row in rows:
        if not row.passed:
            raise CheckFailedError(
                f"export: {row.quantity}: {row.value} where {row.limit} is allowed; no file was written"
            )
    return certificate | {"probe_relative_rms": checked.probe_error, "rows": [row.to_json() for row in rows]}
