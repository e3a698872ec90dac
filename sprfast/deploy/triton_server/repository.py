"""A model repository for NVIDIA's Triton Inference Server: configuration, and the model or export
that `triton_model` serves.

    NAME/config.pbtxt        the python backend: image file in; score, verdict, reason and map out
    NAME/1/model.py          names `triton_server.model.TritonPythonModel`
    NAME/1/model.sprfast     the model file or export, as it was given
    NAME/warmup/image        an image file that the server scores before it is ready
    NAME-onnx/config.pbtxt   of an ONNX export also: the onnxruntime backend, input in, maps out
    NAME-onnx/1/model.onnx   the graph with its frozen noise in it
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL.Image

from sprfast.config import PUBLISHED, Precision
from sprfast.engine import runner
from sprfast.engine.predictor import input_size
from sprfast.errors import InputError
from sprfast.formats import export as export_file
from sprfast.formats.export import Export
from sprfast.formats.manifest import PathLike, file_bytes
from sprfast.lowering import onnx_graph as graph
from sprfast.method import noise
from sprfast.method.anomaly_map import MAP_SIZE
from sprfast.system.files import atomic_folder, write_bytes

FILE = "model.sprfast"  # in the folder of a version
IMAGE = "IMAGE"  # the input
OUTPUTS = {  # types and dimensions of the outputs, without the batch
    "pred_score": ("TYPE_FP64", (1,)),
    "verdict": ("TYPE_UINT8", (-1,)),
    "reason": ("TYPE_UINT8", (-1,)),
    "anomaly_map": ("TYPE_FP32", (MAP_SIZE, MAP_SIZE)),
}
MAX_QUEUE = 65536

_STUB = '"""Served by sprfast, which must be installed in the Python of the server."""\n'
_STUB += "from sprfast.deploy.triton_server.model import TritonPythonModel as TritonPythonModel\n"


@dataclasses.dataclass(frozen=True)
class Serving:
    """How a server runs a model."""

    max_batch: int = 16  # requests that are scored together
    queue: int = 64  # requests that may wait; the server refuses those beyond
    # seconds that a request may wait, then the server refuses it; a request may ask for less
    queue_timeout: float = 30.0
    instances: int = 1  # processes with the model, on each device
    device: str | None = None  # cpu, cuda (each GPU) or cuda:N; None: each GPU, and the CPU where the server has none
    backend: str = "auto"  # see `sprfast.load`
    precision: Precision = "float32"  # of stored feature maps; of an export always its own
    setting: str = PUBLISHED  # of those in a model file; of an export always its own

    def __post_init__(self) -> None:
        for name, most in (("max_batch", 1024), ("queue", MAX_QUEUE), ("instances", 64)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise InputError(f"{name}: {value!r} is not allowed, expected 1 to {most}")
        if not 1e-3 <= self.queue_timeout <= 86400:
            raise InputError(f"queue_timeout: {self.queue_timeout!r} is not allowed, expected a millisecond to a day")
        if self.precision not in get_args(Precision):
            raise InputError(
                f"precision: {self.precision!r} is not known, choose from {', '.join(get_args(Precision))}"
            )
        if not (self.device is None or re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device)):
            raise InputError(f"device: {self.device!r} is not known, choose cpu, cuda or cuda:N")


def write(folder: PathLike, path: PathLike, serving: Serving) -> list[str]:
    """Write a repository that serves a model file or an export under the name of its file, without
    the suffix.

    Args:
        folder: the repository, which must not exist; it appears with all that is in it, or not at
            all.
        path: the model file or export. An ONNX export is served twice: see the top of this module.
        serving: how.

    Returns:
        the names of the models that it serves.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
        InputError: the folder exists or cannot be written, or what is asked for does not go with
            the file.
        BackendError: a library is missing.
    """
    name = Path(path).name.partition(".")[0]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
        raise InputError(f"{path}: a server's model needs a name of letters, digits, - and _; rename the file")
    export = None if export_file.kind(path) == "model" else export_file.read(path)
    size = _model_size(path, serving) if export is None else _export_size(export, serving)
    image = _image(size)
    files = {
        f"{name}/config.pbtxt": text(_python(name, len(image), serving)).encode(),
        f"{name}/warmup/image": image,
        f"{name}/1/model.py": _STUB.encode(),
        f"{name}/1/{FILE}": file_bytes(path),
    }
    if export is not None and export.graph is not None:
        files[f"{name}-onnx/config.pbtxt"] = text(_onnxruntime(f"{name}-onnx", size, serving)).encode()
        files[f"{name}-onnx/1/model.onnx"] = _alone(export)
    with atomic_folder(folder) as root:
        for file, content in files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(root / file, content)
    return sorted({file.partition("/")[0] for file in files})


class Name(str):
    """A name of the configuration's language, which is written without quotes."""


def text(message: Mapping[str, Any], indent: str = "") -> str:
    """A protobuf message as text: a mapping is a message, a list or tuple a repeated field."""
    lines = []
    for name, value in message.items():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{text(item, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}\n")
    return "".join(lines)


def _scalar(value: str | bool | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, Name)):
        return str(value)
    plain = (chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\{byte:03o}" for byte in value.encode())
    return f'"{"".join(plain)}"'


def _python(name: str, image_bytes: int, serving: Serving) -> dict[str, Any]:
    """The configuration of the model that takes image files."""
    parameters = {part: getattr(serving, part) for part in ("backend", "precision", "setting")}
    return {
        "name": name,
        "backend": "python",
        # files of different length may be scored together
        "input": {"name": IMAGE, "data_type": Name("TYPE_UINT8"), "dims": -1, "allow_ragged_batch": True},
        "output": [_tensor(output, kind, dims) for output, (kind, dims) in OUTPUTS.items()],
        **_scheduling(
            serving,
            {"key": IMAGE, "value": {"data_type": Name("TYPE_UINT8"), "dims": image_bytes, "input_data_file": "image"}},
        ),
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
    }


def _onnxruntime(name: str, size: tuple[int, int], serving: Serving) -> dict[str, Any]:
    """The configuration of the model that takes the network's input."""
    dims = (3, *size)
    return {
        "name": name,
        "backend": "onnxruntime",
        "input": _tensor("image", "TYPE_FP32", dims),
        "output": [
            _tensor("error_map", "TYPE_FP32", (1, *size)),
            _tensor("anomaly_map", "TYPE_FP32", (1, MAP_SIZE, MAP_SIZE)),
        ],
        **_scheduling(
            serving, {"key": "image", "value": {"data_type": Name("TYPE_FP32"), "dims": dims, "zero_data": True}}
        ),
    }


def _tensor(name: str, kind: str, dims: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Name(kind), "dims": tuple(dims)}


def _scheduling(serving: Serving, sample: dict[str, Any]) -> dict[str, Any]:
    """Batches, queue, processes, and the input that warms up the smallest and the largest batch."""
    kind, _, index = (serving.device or "auto").partition(":")
    group = {
        "kind": Name({"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU"}[kind]),
        "count": serving.instances,
    }
    return {
        "max_batch_size": serving.max_batch,
        "dynamic_batching": {
            "max_queue_delay_microseconds": 0,  # what waits goes together, and nothing waits for more to come
            "default_queue_policy": {
                "timeout_action": Name("REJECT"),
                "default_timeout_microseconds": round(serving.queue_timeout * 1e6),
                "allow_timeout_override": True,
                "max_queue_size": serving.queue,
            },
        },
        "instance_group": group | ({"gpus": int(index)} if index else {}),
        "model_warmup": [
            {"name": f"{count}", "batch_size": count, "inputs": sample} for count in sorted({1, serving.max_batch})
        ],
    }


def _model_size(path: PathLike, serving: Serving) -> tuple[int, int]:
    """Height and width in pixels at the network's input of a model file that can be served so."""
    from sprfast.backends import registry as backends
    from sprfast.formats import model as model_file

    if serving.backend != "auto":
        # raises where there is none of this name; whether it can run is for the server to see
        backends.unavailable(serving.backend)
    model = model_file.load(path)
    return input_size(model.using(serving.setting).scoring_mode, model.preprocessing)


def _export_size(export: Export, serving: Serving) -> tuple[int, int]:
    """Height and width in pixels at the network's input of an export that can be served so."""
    if (serving.precision, serving.setting) != ("float32", PUBLISHED):
        raise InputError("--precision, --setting: an export has those that it was exported with")
    runner.chosen(export, serving.backend)
    metadata = export.metadata
    return metadata.size or input_size(metadata.scoring_mode, metadata.preprocessing)


def _image(size: tuple[int, int]) -> bytes:
    """A PNG file of mid-grey of this height and width."""
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full(size, 128, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _alone(export: Export) -> bytes:
    """The graph of an export with its noise in it."""
    metadata = export.metadata
    assert export.graph is not None  # of an ONNX export there is one, and it has a size
    assert metadata.size is not None
    if metadata.scoring_mode.tile:
        raise InputError(
            "the export's setting works on tiles, which its graph alone does not: serve the model file, or a plan"
        )
    if metadata.batch is not None:
        raise InputError(
            f"the export is fixed to batches of {metadata.batch}, a server makes its own: export the model without "
            f"--batch"
        )
    return graph.with_noise(export.graph, noise.stacked(metadata.schedule, *metadata.size, metadata.noise_seed))
