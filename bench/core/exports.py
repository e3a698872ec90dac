"""Exports of the model as candidates of a bench."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sprfast.bench.core.peers import Candidate, Maps
from sprfast.data.images import display_name
from sprfast.engine.runner import Runner
from sprfast.errors import InputError
from sprfast.formats import export as export_file
from sprfast.formats.export_metadata import tolerance
from sprfast.formats.model import Model


@contextlib.contextmanager
def opened(model: Model, paths: Sequence[Path], device: torch.device) -> Iterator[dict[str, Runner]]:
    """A runner for each export of this model, by the name of its file; closed in the end.

    Raises:
        ModelFileError: a file is not an export, or damaged.
        InputError: it was made from another model, or two files have one name.
        BackendError: it cannot run here.
    """
    with contextlib.ExitStack() as stack:
        runners: dict[str, Runner] = {}
        for path in paths:
            name = display_name(path.name)
            if name in runners:
                raise InputError(f"--export {path}: another export has this file name; give each one its own")
            runners[name] = _runner(model, path, device)
            stack.callback(runners[name].close)
        yield runners


def candidate(name: str, runner: Runner) -> Candidate:
    """The export as a candidate; on a CPU its graph multiplies in float32 whatever it stores."""
    metadata = runner.metadata
    stored = "/".join(filter(None, (metadata.quantization, metadata.precision)))

    def build(model: Model, noise: Sequence[Tensor], device: torch.device) -> Maps:
        metadata.require_size(tuple(noise[0].shape[-2:]), f"--export {name}: images of the bench")

        def maps(x: Tensor) -> tuple[Tensor, Tensor]:
            errors, anomaly_maps = runner.maps(x.cpu().numpy())
            return torch.from_numpy(errors).to(device), torch.from_numpy(anomaly_maps).to(device)

        return maps

    return Candidate(
        name,
        f"export by sprfast, stored as {stored}, by {runner.backend}",
        build,
        "float32" if str(runner.device) == "cpu" else metadata.precision,
        own_tolerance=tolerance(metadata.precision, metadata.quantization),
    )


def _runner(model: Model, path: Path, device: torch.device) -> Runner:
    stored = export_file.read(path)
    for what, of_export, of_model in (
        ("weights", stored.metadata.model_sha256, model.sha256),
        ("sigma levels", stored.metadata.schedule, model.schedule),
        ("window", stored.metadata.scoring_mode.window, model.scoring_mode.window),
        ("tiles", stored.metadata.scoring_mode.tile, model.scoring_mode.tile),
        ("noise", stored.metadata.noise_seed, model.noise_seed),
    ):
        if of_export != of_model:
            raise InputError(
                f"{path}: was made from another model, its {what} differ; export the model that is given again"
            )
    backend = "tensorrt" if device.type == "cuda" and not stored.folded else "auto"
    return Runner(stored, backend, threads=torch.get_num_threads())
