"""Open a model file or an export; PyTorch is imported for a model file only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sprfast.backends.sessions.session import require_threads
from sprfast.config import PUBLISHED, Precision
from sprfast.errors import InputError
from sprfast.formats import export as export_file
from sprfast.formats.manifest import PathLike
from sprfast.system.libraries import require

if TYPE_CHECKING:
    from sprfast.backends.sessions.session import TensorRtOptions
    from sprfast.engine.engine import Engine
    from sprfast.engine.runner import Runner


def load(
    path: PathLike,
    backend: str = "auto",
    device: str | None = None,
    precision: Precision = "float32",
    setting: str = PUBLISHED,
    threads: int | None = None,
    tensorrt: TensorRtOptions | None = None,
) -> Engine | Runner:
    """An engine for a model file, or a runner for an export.

    A runner has computed the right error map of its probe image first; an engine does that in
    `self_test`.

        engine = sprfast.load("bottle.safetensors", setting="single")
        result = engine.predict("part.png")

    Args:
        path: a file that training, `sprfast import` or `sprfast export` wrote.
        backend: "auto" (for a model file see `registry.choose`), or a name: for a model file one of
            `registry.NAMES`; for a plan "cpu"; for an ONNX file "onnxruntime", which "auto" is,
            "tensorrt" or "tensorrt_rtx".
        device: "cpu", "cuda" or "cuda:N"; "cuda" is the first, or under torchrun this process's
            own. None: for a model file CUDA where there is one; for an export a CUDA device for
            TensorRT, else the CPU.
        precision: of stored feature maps; see `registry.create`. A threshold holds for the
            precision that it was calibrated in. An export has its own, and takes "float32" only.
        setting: name of a scoring mode that the model file holds. An export has its own, and takes
            "published" only.
        threads: that compute on a CPU; for a model file this sets torch's, in the whole process.
            None: for a model file as they are, for an export `session.default_threads`.
        tensorrt: how TensorRT builds and runs; None: `TensorRtOptions()`.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
        InputError: an argument is not known, or not for an export.
        BackendError: the backend or device cannot run here, or computes wrong error maps.
    """
    if export_file.kind(path) == "model":
        require("torch", "train")
        from sprfast.engine.engine import Engine
        from sprfast.formats import model as model_file

        if threads is not None:
            import torch

            require_threads(threads)
            torch.set_num_threads(threads)
        return Engine(model_file.load(path).using(setting), backend, device, precision, tensorrt)
    from sprfast.engine.runner import Runner

    if precision != "float32":
        raise InputError(f"precision {precision}: an export has the precision that it was exported in")
    if setting != PUBLISHED:
        raise InputError(f"setting {setting}: an export has the setting that it was exported with")
    return Runner(export_file.read(path), backend, device, threads, tensorrt)
