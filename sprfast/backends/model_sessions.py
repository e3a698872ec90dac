"""Sessions of a model: the folded model by our CPU kernels, and as an ONNX graph for each size of
images by onnxruntime or TensorRT.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import cast

import torch

from sprfast.backends.sessions.session import Flavour, Floats, Session, TensorRtOptions
from sprfast.config import Precision
from sprfast.errors import BackendError
from sprfast.formats.export_metadata import TOLERANCE
from sprfast.formats.model import Model
from sprfast.lowering.fold import fold
from sprfast.lowering.probe import probe
from sprfast.method import noise

SIZES = 4  # whose sessions are kept, the last ones used


def open_session(
    name: str, model: Model, device: torch.device, precision: Precision, options: TensorRtOptions | None = None
) -> Session:
    """The session `name`, which takes images of any size.

    On a CPU it uses as many threads as torch is set to: our kernels in each call, onnxruntime when
    images of a size come first. TensorRT builds a plan when images of a size come first on this
    machine, which takes minutes, and refuses one that does not give the definition's error map.

    Raises:
        BackendError: it cannot run on this device or in this precision.
    """
    if name == "cpu":
        if device.type != "cpu":
            raise BackendError(f"backend cpu: cannot run on {device}; use --device cpu, or another backend")
        from sprfast.backends.sessions.cpu import CpuSession

        return CpuSession(fold(model), torch.get_num_threads, precision)
    if name != "onnxruntime" and device.type != "cuda":
        raise BackendError(f"backend {name}: cannot run on {device}; use --device cuda, or another backend")
    from sprfast.lowering.onnx_graph import Normalization, onnx_model

    folded = fold(model)

    def open_size(height: int, width: int) -> Session:
        normalization: Normalization = "instance" if name == "onnxruntime" else "group"
        onnx = onnx_model(folded, height, width, precision=precision, normalization=normalization).SerializeToString()
        if name == "onnxruntime":
            from sprfast.backends.sessions.onnxruntime import OnnxRuntimeSession

            return OnnxRuntimeSession(onnx, str(device), torch.get_num_threads(), None, precision)
        from sprfast.backends.sessions import tensorrt

        return tensorrt.Graph(
            onnx,
            flavour=cast(Flavour, name),
            probe=probe(model, height, width, TOLERANCE[precision]),
            noise=noise.stacked(model.schedule, height, width, model.noise_seed),
            precision=precision,
            quantization=None,
            batch=None,
            device=device.index or 0,
            options=options or TensorRtOptions(),
        ).open()

    return SessionOfSizes(open_size)


class SessionOfSizes:
    """A session for images of any size, of sessions for one size each; the last `SIZES` are kept.

    Args:
        open_size: opens a session for images of this height and width.
    """

    def __init__(self, open_size: Callable[[int, int], Session]) -> None:
        self._open = open_size
        self._sessions: collections.OrderedDict[tuple[int, int], Session] = collections.OrderedDict()
        self._lock = threading.Lock()

    def maps(self, x: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Error maps and anomaly maps; see `session.Session`.

        Raises:
            InputError: an image is smaller than 16 pixels on a side.
        """
        return self._session((x.shape[2], x.shape[3])).maps(x, z)

    def close(self) -> None:
        """Release what the sessions hold on a device."""
        with self._lock:
            for session in self._sessions.values():
                if close := getattr(session, "close", None):
                    close()
            self._sessions.clear()

    def _session(self, size: tuple[int, int]) -> Session:
        with self._lock:  # also while it opens: a second caller would open the same
            if size not in self._sessions:
                self._sessions[size] = self._open(*size)
                if len(self._sessions) > SIZES:
                    self._sessions.popitem(last=False)
            self._sessions.move_to_end(size)
            return self._sessions[size]
