"""What Triton's python backend runs for a repository of `triton_repository`: image files to
verdicts, by an engine or a runner.

A request holds one image, or several files of one length (B, N); the server hands over the requests
that waited. Tensors come and go by DLPack, since the backend's own conversion to and from numpy
gives wrong data under numpy 2; it has no strings then, so texts are UTF-8 bytes, filled up with
zeros where a request holds several.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast.deploy.triton_server.repository import FILE, IMAGE
from sprfast.engine.load import load
from sprfast.engine.predictor import Result
from sprfast.errors import SprfastError
from sprfast.method.anomaly_map import MAP_SIZE

_USED = b"used_dltensor"  # DLPack's name of a capsule that has been taken
_set_capsule_name = ctypes.pythonapi.PyCapsule_SetName
_set_capsule_name.argtypes = (ctypes.py_object, ctypes.c_char_p)


class TritonPythonModel:
    """The class that the python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model that lies in the folder of this version; it is not ready before it has
        passed its self-test.

        Args:
            args: as the backend gives them: `model_config` as JSON, `model_repository` (the model's
                folder), `model_version`, `model_instance_kind` (CPU or GPU) and
                `model_instance_device_id`.

        Raises:
            SprfastError: the model cannot run here, or computes wrong error maps; the server logs
                it and does not get ready.
        """
        parameters = json.loads(args["model_config"])["parameters"]
        backend, precision, setting = (parameters[name]["string_value"] for name in ("backend", "precision", "setting"))
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        path = Path(args["model_repository"], args["model_version"], FILE)
        self._predictor = load(path, backend, device, precision, setting)
        self._predictor.self_test()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request; an image that cannot be scored has the verdict ERROR and
        disturbs no other.

        Where the backend fails, each request gets an error in place of tensors.
        """
        import triton_python_backend_utils as server  # type: ignore[import-not-found]  # there is one inside the server only

        files = [np.from_dlpack(server.get_input_tensor_by_name(request, IMAGE)) for request in requests]
        try:
            results = self._predictor.predict([BytesIO(row.tobytes()) for rows in files for row in rows])
        except SprfastError as error:
            return [server.InferenceResponse(error=server.TritonError(f"sprfast: {error}")) for _ in requests]
        responses = []
        for rows in files:
            mine, results = results[: len(rows)], results[len(rows) :]
            tensors = [_tensor(server, name, value) for name, value in outputs(mine).items()]
            responses.append(server.InferenceResponse(output_tensors=tensors))
        return responses


def outputs(results: Sequence[Result]) -> dict[str, npt.NDArray[Any]]:
    """The output tensors of one request.

    Returns:
        `pred_score` (B, 1) float64, NaN where there is none; `verdict` and `reason` (B, N) uint8,
        see `_texts`; `anomaly_map` (B, 256, 256) float32, NaN where there is none.
    """
    nothing = np.full((MAP_SIZE, MAP_SIZE), np.nan, np.float32)
    return {
        "pred_score": np.array([[result.pred_score] for result in results], np.float64),
        "verdict": _texts([result.verdict.value for result in results]),
        "reason": _texts([result.reason or "" for result in results]),
        "anomaly_map": np.stack([nothing if result.anomaly_map is None else result.anomaly_map for result in results]),
    }


def _tensor(server: Any, name: str, value: npt.NDArray[Any]) -> Any:
    """The backend's tensor in the memory of an array."""
    capsule = value.__dlpack__()
    tensor = server.Tensor.from_dlpack(name, capsule)
    # the backend gives it a name that numpy does not know, of which numpy would complain in the log
    _set_capsule_name(capsule, _USED)
    return tensor


def _texts(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    """(B, N): UTF-8, zeros up to the longest; the server takes no empty tensor, so N is not 0."""
    encoded = [text.encode() for text in texts]
    longest = max(1, *map(len, encoded))
    return np.stack([np.frombuffer(each.ljust(longest, b"\0"), np.uint8) for each in encoded])
