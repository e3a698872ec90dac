"""What a worker or a server opens: an engine for a model file, a runner for an export."""

from __future__ import annotations

from typing import Any

from sprfast import export_file
from sprfast.manifest import PathLike
from sprfast.prediction import Predictor


def opened(path: PathLike, backend: str, device: str | None, precision: Any, setting: str) -> Predictor:
    """An engine with one of the settings of a model file, or a runner for an export, which has its own setting and precision.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
        InputError: a backend, precision or setting is not known.
        BackendError: the backend or device cannot run here.
    """
    if export_file.kind(path) == "model":
        from sprfast import engine

        return engine.load(path, backend, device, precision, setting)
    from sprfast import runner

    return runner.load(path, backend, device)
