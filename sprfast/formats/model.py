"""The model file: a trained network with all that scoring needs, in one safetensors file."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprfast.config import PUBLISHED, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import InputError, ModelFileError
from sprfast.formats import manifest, tensors
from sprfast.formats.manifest import PathLike, quoted
from sprfast.method.scoring_mode import ScoringMode, refuse_gone
from sprfast.method.unet import parameter_shapes

_PUBLISHED_PREPROCESSING = Preprocessing()
_PUBLISHED_SCHEDULE = Schedule()
_PARALLEL_PREFIX = "module."  # DataParallel puts it before every key


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What a model file holds, checked on construction.

    Raises:
        InputError: the weights are not those of `network` (exact keys, shapes, float32, finite), or
            another field is out of range.
    """

    network: NetworkConfig
    scoring_mode: ScoringMode  # the one named `PUBLISHED`
    preprocessing: Preprocessing
    weights: dict[str, Tensor]  # float32, the exponential moving average, under the authors' keys
    noise_seed: int = 0  # of the frozen noise bank, 0 to 2**32 - 1
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)  # where the weights come from; JSON
    certificates: tuple[dict[str, Any], ...] = ()  # of parity, one a backend; JSON
    scoring_modes: dict[str, ScoringMode] = dataclasses.field(default_factory=dict)  # others, by name

    def __post_init__(self) -> None:
        if type(self.noise_seed) is not int or not 0 <= self.noise_seed < 2**32:
            raise InputError(f"noise_seed: {self.noise_seed!r} is not allowed, expected an integer from 0 to 2**32 - 1")
        if not all(isinstance(certificate, dict) for certificate in self.certificates):
            raise InputError("certificates: expected one object a certificate")
        _check_weights(self.weights, self.network)

    @property
    def schedule(self) -> Schedule:
        """The sigma levels of the scoring mode."""
        return self.scoring_mode.schedule

    def using(self, name: str) -> Model:
        """The model with the scoring mode of this name; `PUBLISHED` is its own.

        Raises:
            InputError: it has none of this name.
        """
        if name == PUBLISHED:
            return self
        if name in self.scoring_modes:
            return dataclasses.replace(self, scoring_mode=self.scoring_modes[name])
        refuse_gone(name)
        known = ", ".join((PUBLISHED, *self.scoring_modes))
        raise InputError(f"setting {quoted(name)}: the model has {known}; `sprfast calibrate --setting` adds one")

    @property
    def sha256(self) -> str:
        """SHA-256 over, for each key in sorted order, the key and its float32 little-endian bytes.

        It names the weights, and so stays the same when the threshold or another field changes.
        """
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].detach().cpu().reshape(-1).numpy().astype("<f4", copy=False).data)
        return digest.hexdigest()


def save(path: PathLike, model: Model) -> None:
    """Write `model` to `path`, atomically; the same model gives the same bytes.

    Raises:
        ModelFileError: provenance or certificates are not JSON.
        InputError: the file cannot be written; the old file is unchanged.
    """
    document = {
        "network": model.network.to_json(),
        "preprocessing": model.preprocessing.to_json(),
        "noise_seed": model.noise_seed,
        **model.scoring_mode.to_json(),
        "settings": {name: mode.to_json() for name, mode in model.scoring_modes.items()},
        "cascades": {},  # of a mode that is gone
        "provenance": model.provenance,
        "certificates": list(model.certificates),
    }
    tensors.write(
        path, {name: value.detach().cpu().numpy() for name, value in model.weights.items()}, document, kind="model"
    )


def load(path: PathLike) -> Model:
    """The model of a file that `save` wrote, after every check of `tensors.read` and `Model`.

    Fields that this version does not know are ignored: what must not be ignored raises the format
    version.

    Raises:
        ModelFileError: the file is missing, damaged, foreign or from a newer version.
    """
    weights, document = tensors.read(path, kind="model")
    manifest.field(path, document, "schedule", dict)
    others = manifest.field(path, {"settings": {}} | document, "settings", dict)
    try:
        return Model(
            network=NetworkConfig.from_json(manifest.field(path, document, "network", dict)),
            scoring_mode=ScoringMode.from_json(document),
            preprocessing=Preprocessing.from_json(manifest.field(path, document, "preprocessing", dict)),
            weights={name: torch.from_numpy(array) for name, array in weights.items()},
            noise_seed=manifest.field(path, document, "noise_seed", int),
            scoring_modes={name: ScoringMode.from_json(mode) for name, mode in others.items()},
            provenance=manifest.field(path, document, "provenance", dict),
            certificates=tuple(manifest.field(path, document, "certificates", list)),
        )
    except InputError as error:
        raise ModelFileError(f"{path}: {error}") from error


def import_checkpoint(
    path: PathLike, *, preprocessing: Preprocessing = _PUBLISHED_PREPROCESSING, schedule: Schedule = _PUBLISHED_SCHEDULE
) -> Model:
    """The model of a `.pth` checkpoint that the published code wrote.

    Such a file is a pickle. It is read in PyTorch's weights-only mode, which builds tensors and
    refuses everything else. Base width and embedding size are inferred from the shapes.

    Args:
        path: a state dict, bare or with `module.` before every key.
        preprocessing: how the network was trained to see images; not in the checkpoint.
        schedule: the sigma levels to score with; not in the checkpoint.

    Raises:
        ModelFileError: the file is missing, damaged, holds anything but tensors, or its keys,
            shapes, dtypes (float32) or values (finite) are not those of the network.
    """
    content = manifest.file_bytes(path)
    state = _state_dict(path, content)
    try:
        network = _inferred_network(state)
        _check_weights(state, network)
        return Model(
            network=network,
            scoring_mode=ScoringMode(schedule),
            preprocessing=preprocessing,
            # copied, since a pickled tensor may share memory with another, or be a view of less
            weights={name: torch.empty(tensor.shape).copy_(tensor.detach()) for name, tensor in state.items()},
            provenance={"imported_from": Path(path).name, "sha256": hashlib.sha256(content).hexdigest()},
        )
    except InputError as error:
        raise ModelFileError(f"{path}: not a checkpoint of the published network ({error})") from error


def _state_dict(path: PathLike, content: bytes) -> dict[str, Tensor]:
    """Names to dense tensors on the CPU, without the prefix of DataParallel."""
    state = _unpickled(path, content)
    if not isinstance(state, Mapping):
        raise ModelFileError(f"{path}: holds {type(state).__name__}, expected a state dict (names to tensors)")
    for name, value in state.items():
        if not isinstance(name, str):
            raise ModelFileError(f"{path}: the state dict has the key {quoted(name)}, expected names only")
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise ModelFileError(f"{path}: {quoted(name)} is {type(value).__name__}, expected a dense tensor")
    if all(name.startswith(_PARALLEL_PREFIX) for name in state):
        return {name.removeprefix(_PARALLEL_PREFIX): value for name, value in state.items()}
    return dict(state)


def _unpickled(path: PathLike, content: bytes) -> Any:
    try:
        # PyTorch does not look at the checksums of its own format
        if content.startswith(b"PK") and (damaged := zipfile.ZipFile(io.BytesIO(content)).testzip()) is not None:
            raise ValueError(f"the checksum of {quoted(damaged)} is wrong")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelFileError(f"{path}: not a state dict of tensors; other pickles are never loaded") from error
    except Exception as error:  # zipfile and torch answer damage with almost any type
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelFileError(f"{path}: damaged, or not a PyTorch checkpoint ({reason})") from error


def _inferred_network(state: Mapping[str, Tensor]) -> NetworkConfig:
    first, frequencies = "inc.double_conv.0.weight", "embed.0.W"
    for name in (first, frequencies):
        if name not in state or state[name].ndim == 0:
            raise InputError(f"weight {quoted(name)} is missing or has no dimension")
    return NetworkConfig(base_width=state[first].shape[0], embedding_dim=2 * state[frequencies].shape[0])


def _check_weights(weights: Mapping[str, Tensor], network: NetworkConfig) -> None:
    """Exact keys, shapes and float32, all finite."""
    shapes = parameter_shapes(network)
    for name in sorted(shapes.keys() ^ weights.keys()):
        raise InputError(f"weight {quoted(name)} is {'missing' if name in shapes else 'not one of the network'}")
    for name, shape in shapes.items():
        tensor = weights[name]
        if tuple(tensor.shape) != shape:
            raise InputError(f"weight {quoted(name)} has shape {tuple(tensor.shape)}, expected {shape}")
        if tensor.dtype != torch.float32:
            raise InputError(f"weight {quoted(name)} is {str(tensor.dtype).removeprefix('torch.')}, expected float32")
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"weight {quoted(name)} holds NaN or infinity, expected finite numbers")
