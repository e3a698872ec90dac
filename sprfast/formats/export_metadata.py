"""What an exported network carries with it: all that scoring needs beside the network, and proof
that it computes the right maps.

The proof is a probe: an image that is a function of its size alone, with the error map that the
definition gives for it. Whoever loads an export computes that map first and compares.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sprfast.config import NetworkConfig, Precision, Preprocessing, Schedule, checked
from sprfast.errors import BackendError, InputError
from sprfast.formats import trained_on
from sprfast.formats.manifest import FORMAT_VERSION
from sprfast.method import tiles
from sprfast.method.folded import MIN_SIZE
from sprfast.method.scoring_mode import ScoringMode

Map = npt.NDArray[np.float32]
Quantization = Literal["int8", "float8"]

MAX_BATCH = 4096  # images a call that an export may be fixed to

# Relative RMS error of error maps and relative error of scores. What 16-bit storage costs depends
# on the model, so that its verdicts are what counts; these limits are several times what the golden
# weights show.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "float16": 3e-3, "bfloat16": 3e-2}
QUANTIZED_TOLERANCE: dict[Quantization, float] = {"int8": 0.2, "float8": 0.2}


def tolerance(precision: Precision, quantization: Quantization | None) -> float:
    """The relative errors that are allowed."""
    return max(TOLERANCE[precision], QUANTIZED_TOLERANCE[quantization] if quantization else 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """An image's error map as the definition has it; the image is `probe_image` of the map's
    size.
    """

    error_map: Map  # (H, W), float32
    tolerance: float  # relative RMS error that is allowed

    def check(self, error_map: Map, who: str) -> float:
        """The relative RMS error of `error_map` (H, W) against the definition's.

        Raises:
            BackendError: it is beyond the tolerance, not a number or of another shape; the message
                begins with `who`.
        """
        expected = self.error_map.astype(np.float64)
        if error_map.shape != expected.shape:
            raise BackendError(f"{who}: the probe image's error map is {error_map.shape}, expected {expected.shape}")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found below
            difference = error_map.astype(np.float64) - expected
            error = float(np.sqrt(np.square(difference).mean() / np.square(expected).mean()))
        if not error <= self.tolerance:
            raise BackendError(
                f"{who}: the error map of the probe image is off by {error:.3g} (relative RMS, allowed "
                f"{self.tolerance:.3g}); nothing may be scored with it"
            )
        return error


def probe_image(height: int, width: int) -> Map:
    """(1, 3, H, W) in [-1, 1]: smooth patches, an edge and fine noise, always the same."""
    generator = np.random.RandomState(0)
    patches = generator.uniform(-0.8, 0.8, (1, 3, 7, 7))
    rows, columns = (np.linspace(0, 6, size) for size in (height, width))
    image = _linear(_linear(patches, rows, axis=2), columns, axis=3)
    image[:, :, height // 3 :, : width // 2] *= -0.5
    image += generator.uniform(-0.1, 0.1, image.shape)
    return np.clip(image, -1.0, 1.0).astype(np.float32)


def _linear(values: npt.NDArray[np.float64], at: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """Linear interpolation along an axis."""
    low = np.minimum(at.astype(np.int64), values.shape[axis] - 2)
    share = (at - low).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    between: npt.NDArray[np.float64] = values.take(low, axis) * (1.0 - share) + values.take(low + 1, axis) * share
    return between


@dataclasses.dataclass(frozen=True, eq=False)
class ExportMetadata:
    """All that scoring needs beside the network itself."""

    network: NetworkConfig
    scoring_mode: ScoringMode
    preprocessing: Preprocessing
    noise_seed: int
    model_sha256: str  # of the weights that it was made from
    precision: Precision
    quantization: Quantization | None
    # height and width at the network's input, where the scoring mode has tiles of a tile; None: any
    size: tuple[int, int] | None
    batch: int | None  # images a call; None: any number
    probe: Probe
    certificates: tuple[dict[str, Any], ...] = ()  # of parity with the definition when it was made; JSON
    trained_on: str = ""  # of the model's provenance, see `formats.trained_on`
    category: str = ""  # that the model was trained on; "": its file does not say

    @property
    def schedule(self) -> Schedule:
        """The sigma levels of the scoring mode."""
        return self.scoring_mode.schedule

    def require_size(self, size: tuple[int, ...], name: str) -> None:
        """Raise InputError, which begins with `name`, where the export does not take network inputs
        of this (height, width).
        """
        if self.size is not None and self.size != tiles.shape(size, self.scoring_mode.tile):
            got, allowed = ("x".join(map(str, each)) for each in (size, self.size))
            raise InputError(
                f"{name}: {got} pixels (height x width) at the network's input, this export takes {allowed} only; "
                f"export with --size {got}, or train with the size policy 'stretch'"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, of which `from_json` makes it again."""
        error_map = np.ascontiguousarray(self.probe.error_map, "<f4")
        return {
            "network": self.network.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "noise_seed": self.noise_seed,
            **self.scoring_mode.to_json(),
            "model_sha256": self.model_sha256,
            "precision": self.precision,
            "quantization": self.quantization,
            "size": None if self.size is None else list(self.size),
            "batch": self.batch,
            "probe": {
                "shape": list(error_map.shape),
                "error_map": base64.b64encode(error_map.tobytes()).decode(),
                "tolerance": self.probe.tolerance,
            },
            "certificates": list(self.certificates),
            **({trained_on.FIELD: self.trained_on} if self.trained_on else {}),
            **({"category": self.category} if self.category else {}),
        }

    @classmethod
    def from_json(cls, document: Any) -> ExportMetadata:
        """The metadata in a checked document.

        Raises:
            InputError: a field is missing or not allowed; the message names it.
        """
        try:
            mode = {name: document[name] for name in ("schedule", "threshold")}  # its other parts format 1 did not have
            quantization, size, batch = document["quantization"], document["size"], document["batch"]
            metadata = cls(
                network=checked("network", NetworkConfig, document["network"]),
                scoring_mode=ScoringMode.from_json(document | mode),
                preprocessing=checked("preprocessing", Preprocessing, document["preprocessing"]),
                noise_seed=_integer("noise_seed", document["noise_seed"], 0, 2**32 - 1),
                model_sha256=_sha256("model_sha256", document["model_sha256"]),
                precision=checked("precision", Precision, document["precision"]),
                quantization=None if quantization is None else checked("quantization", Quantization, quantization),
                size=None if size is None else _size("size", size),
                batch=None if batch is None else _integer("batch", batch, 1, MAX_BATCH),
                probe=_probe(document["probe"]),
                certificates=checked("certificates", tuple[dict[str, Any], ...], document["certificates"]),
                trained_on=checked(trained_on.FIELD, str, document.get(trained_on.FIELD, "")),
                category=checked("category", str, document.get("category", "")),
            )
        except KeyError as error:
            raise InputError(f"field {error} is missing") from error
        metadata.require_size(metadata.probe.error_map.shape, "probe")
        return metadata


def document_of(metadata: ExportMetadata, kind: str) -> dict[str, Any]:
    """What `manifest.signed` takes: the metadata in a file of this kind."""
    return {"format_version": FORMAT_VERSION, "kind": kind, **metadata.to_json()}


def _probe(document: Any) -> Probe:
    if not isinstance(document, dict):
        raise InputError(f"probe: expected an object, got {type(document).__name__}")
    shape, tolerance = _size("probe.shape", document["shape"]), document["tolerance"]
    try:
        error_map = np.frombuffer(base64.b64decode(document["error_map"], validate=True), "<f4").reshape(shape)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"probe.error_map: expected base64 of {shape[0]} x {shape[1]} little-endian float32 numbers"
        ) from error
    if not np.isfinite(error_map).all() or not error_map.any():
        raise InputError("probe.error_map: expected finite numbers, not all of them 0")
    if type(tolerance) is not float or not 0.0 < tolerance < 1.0:
        raise InputError(f"probe.tolerance: {tolerance!r} is not allowed, expected a number between 0 and 1")
    return Probe(error_map.astype(np.float32), tolerance)


def _sha256(name: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise InputError(f"{name}: {value!r} is not allowed, expected 64 hexadecimal digits")
    return value


def _size(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f"{name}: {value!r} is not allowed, expected a height and a width")
    return _integer(f"{name}[0]", value[0], MIN_SIZE, 2**16), _integer(f"{name}[1]", value[1], MIN_SIZE, 2**16)


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name}: {value!r} is not allowed, expected an integer from {low} to {high}")
    return value
