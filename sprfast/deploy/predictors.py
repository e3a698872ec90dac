"""What a worker or a server opens: an engine for a model file, a runner for an export."""

from __future__ import annotations

from typing import Any

from sprfast.engine.predictor import Predictor
from sprfast.errors import InputError
from sprfast.formats import export as export_file
from sprfast.formats.manifest import PathLike
from sprfast.method.scoring_mode import PUBLISHED


def opened(
    path: PathLike, backend: str, device: str | None, precision: Any, setting: str, threads: int | None = None
) -> Predictor:
    """An engine with one of the settings of a model file, or a runner for an export.

    Args:
        precision, setting: as `engine.load` takes them; of an export only "float32" and
            "published", since it has its own.
        threads: that compute on a CPU; for a model file this sets torch's, in the whole process.
            None: as they are.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
        InputError: a backend, precision or setting is not known, or not for an export.
        BackendError: the backend or device cannot run here.
    """
    if export_file.kind(path) == "model":
        import torch

        from sprfast.engine import engine

        if threads is not None:
            torch.set_num_threads(threads)
        return engine.load(path, backend, device, precision, setting)
    from sprfast.engine import runner

    for name, value, own in (("precision", precision, "float32"), ("setting", setting, PUBLISHED)):
        if value != own:
            raise InputError(f"{name} {value}: an export has the {name} that it was exported with")
    return runner.load(path, backend, device, threads)


def device_under_ray(device: str | None, gpus: float) -> str:
    """The device of a worker that Ray gives `gpus` GPUs; None means CUDA where that is above 0.

    Raises:
        InputError: Ray would not count what the worker uses, or the worker would not use what it is
            given.
    """
    chosen = device or ("cuda" if gpus else "cpu")
    if chosen not in ("cpu", "cuda"):
        raise InputError(f"device: {chosen!r} is not allowed, expected cpu or cuda; Ray chooses the GPU")
    if (chosen == "cuda") != (gpus > 0):
        raise InputError(f"device {chosen} with {gpus:g} GPUs a worker: cuda needs a number above 0, and cpu none")
    return chosen
