"""An ONNX graph through onnxruntime."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from sprfast.backends.sessions.session import Floats
from sprfast.config import Precision
from sprfast.errors import BackendError
from sprfast.system.libraries import require

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}  # by kind of device
OUTPUTS = ("error_map", "anomaly_map")


def unavailable() -> str | None:
    """None where onnxruntime is installed, else what to install."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "needs onnxruntime, not installed here: run pip install 'sprfast[onnx]'"
    return None


def library() -> Any:
    """The module onnxruntime, imported so that it sends nothing.

    Unless this variable is set before it is imported, its release 1.32 keeps events about sessions
    in the home folder, to send them to its maker; its own `disable_telemetry_events` is too late.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", "onnx")


class OnnxRuntimeSession:
    """A `session.Session` of onnxruntime; an image gives the same bits in any batch.

    Images go through the graph one by one, each with all its draws, or as many together as the
    graph is fixed to.

    Args:
        graph: an ONNX model as `graph.onnx_model` makes it.
        device: "cpu", "cuda" or "cuda:N".
        threads: that compute, on the CPU.
        batch: images that the graph is fixed to; None: any number.
        precision: that the graph stores feature maps in.

    Raises:
        BackendError: onnxruntime or its provider for the device is missing, took another provider
            than the one asked for, or refuses the graph.
    """

    def __init__(self, graph: bytes, device: str, threads: int, batch: int | None, precision: Precision) -> None:
        if reason := unavailable():
            raise BackendError(f"backend onnxruntime: {reason}")
        if precision == "bfloat16" and device == "cpu":
            raise BackendError("backend onnxruntime: has no bfloat16 convolution on a CPU; use float16 or float32")
        onnxruntime = library()
        kind, _, index = device.partition(":")
        provider = PROVIDERS.get(kind)
        if provider is None or not (index or "0").isdecimal():
            raise BackendError(f"backend onnxruntime: device {device!r} is not known, use cpu, cuda or cuda:N")
        present = onnxruntime.get_available_providers()
        if provider not in present:
            raise BackendError(
                f"backend onnxruntime: this onnxruntime has no {provider}, only {', '.join(present)}; {_REMEDY[kind]}"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors, which are raised too
        options.intra_op_num_threads = threads
        if kind != "cpu":  # nothing may be computed elsewhere in silence
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        choice = (provider, {"device_id": index or "0"}) if kind == "cuda" else provider
        self._session = _named(lambda: onnxruntime.InferenceSession(graph, options, providers=[choice]))
        if (got := self._session.get_providers()[0]) != provider:
            raise BackendError(f"backend onnxruntime: asked for {provider}, got {got}; {_REMEDY[kind]}")
        self._batch = batch

    def maps(self, x: Floats, z: Floats) -> tuple[Floats, Floats]:
        """Error maps and anomaly maps of images of the graph's size; see `session.Session`."""
        count, step = len(x), self._batch or 1
        if missing := -count % step:
            x = np.concatenate([x, np.zeros((missing, *x.shape[1:]), np.float32)])

        def part(images: Floats) -> Any:
            return _named(lambda: self._session.run(OUTPUTS, {"image": images, "noise": z}))

        parts = [part(x[first : first + step]) for first in range(0, count, step)]
        errors, anomaly_maps = (np.concatenate(maps)[:count] for maps in zip(*parts, strict=True))
        return errors, anomaly_maps


_REMEDY = {
    "cpu": "reinstall it: run pip install --force-reinstall onnxruntime",
    "cuda": "remove onnxruntime, then run pip install onnxruntime-gpu on a machine with an NVIDIA driver",
}


def _named(call: Callable[[], Any]) -> Any:
    """What `call` returns; its own errors, which have types of many modules, as BackendError."""
    try:
        return call()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BackendError(f"backend onnxruntime: {reason}") from error
