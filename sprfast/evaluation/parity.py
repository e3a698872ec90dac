"""Does a backend compute the published score? Against golden outputs, and against the definition.

`check_golden` compares with what the authors' own code put out for stored inputs, `check_images`
with the plain definition on images of one's own. Both give a `Report`; neither raises when a
number is off.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sprfast.backends import registry as backends
from sprfast.config import Level, NetworkConfig, Precision, Preprocessing, Schedule
from sprfast.data.images import display_name, load_image
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.formats.export_metadata import TOLERANCE, Map
from sprfast.formats.model import Model
from sprfast.lowering.probe import defined
from sprfast.method import scoring, sde, unet
from sprfast.method.anomaly_map import MAP_SIZE
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import verdict
from sprfast.system import devices
from sprfast.system.files import confined
from sprfast.system.reading import open_regular

GOLDEN_T = 1e-3  # the sigma level of every golden error map
GOLDEN_RMS_TOLERANCE = 1e-5  # relative RMS, of scores and error maps
GOLDEN_MAP_TOLERANCE = 1e-6  # absolute, of anomaly maps and pred_scores

_GOLDEN_NETWORK = NetworkConfig()
_SHIFT = 4.0  # of the noise in one channel, larger than the golden networks' outputs
_Arrays = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of a report and what it may be at most."""

    case: str  # name of the golden case, or "images"
    quantity: str  # what was compared, and how
    value: float | None  # None: not defined, `reason` says why
    limit: float | None  # None: for information only
    reason: str | None = None

    @property
    def passed(self) -> bool:
        """True without a limit; otherwise the value must be a number up to it, which NaN is not."""
        return self.limit is None or (self.value is not None and self.value <= self.limit)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a value that is not finite becomes null with a reason."""
        document = {**dataclasses.asdict(self), "passed": self.passed}
        if self.value is not None and not math.isfinite(self.value):
            document |= {"value": None, "reason": f"the value is {self.value}"}
        return document


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of a parity check."""

    backend: str  # its name, for "auto" the one that was chosen
    precision: Precision
    device: str  # where it ran
    images: int  # compared
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every row passed, of which there must be one."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values without NaN or infinity."""
        return {"passed": self.passed, **dataclasses.asdict(self), "rows": [row.to_json() for row in self.rows]}


def check_golden(
    folder: str | os.PathLike[str],
    backend: str = "eager",
    device: str | torch.device | None = None,
    precision: Precision = "float32",
) -> Report:
    """Run every case of `folder`/golden.json and compare with the float32 outputs stored beside it.

    All is computed by the backend. It yields maps only, so its scores s(x, t) are worked out from
    error maps; not in 16 bits, whose errors that multiplies.

    Args:
        folder: golden.json and one .npz file a case.
        backend: "auto" or one of `registry.NAMES`.
        device, precision: see `registry.create`.

    Raises:
        InputError: golden.json or a file of a case is missing, damaged or of another form.
        BackendError: the backend or device cannot run here.
    """
    document = _document(Path(folder))
    cases = _cases(document)
    stored = {name: _arrays(Path(folder), name, case) for name, case in cases.items()}
    weights = golden_weights(document)

    def create(t: float, draws: int) -> backends.Backend:
        mode = ScoringMode(Schedule((Level(t, draws),)))
        return backends.create(backend, Model(_GOLDEN_NETWORK, mode, Preprocessing(), weights), device, precision)

    rows: list[Row] = []
    for name, case in cases.items():
        for index, t in enumerate(case["t"] if precision == "float32" else ()):
            scores = _scores(create(t, 1), t, stored[name]["x"])
            error = _relative_rms(scores, stored[name][f"score_t{index}"])
            quantity = f"score at t = {t} (from error maps), relative RMS error"
            rows.append(Row(name, quantity, error, GOLDEN_RMS_TOLERANCE))
        rows += _map_rows(name, create(GOLDEN_T, case["iterations"]), stored[name], precision)
    images = sum(case["batch"] for case in cases.values())
    chosen = backends.choose(backend, device, precision)
    return Report(chosen, precision, str(devices.resolve(device)), images, tuple(rows))


def golden_weights(document: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the golden outputs, which are a function of the parameters' names and a seed.

    Args:
        document: the content of golden.json; `state_dict` (names to shapes), `seed` and
            `weights_sha256` are used.

    Returns:
        names to float32 tensors on the CPU: 17.84 M numbers.

    Raises:
        InputError: a field is missing or wrong, or the weights do not have the hash stated.
    """
    seed = _field(document, "seed", int)
    if not 0 <= seed < 2**32:
        raise InputError(f"golden.json: seed {seed} is not allowed, expected 0 to 2**32 - 1")
    shapes = unet.parameter_shapes(_GOLDEN_NETWORK)
    if _field(document, "state_dict", dict) != {name: list(shape) for name, shape in shapes.items()}:
        raise InputError(
            "golden.json: state_dict does not list the parameters of the published network with their shapes"
        )
    weights = {name: torch.from_numpy(_golden_weight(name, shape, seed)) for name, shape in shapes.items()}
    got = Model(_GOLDEN_NETWORK, ScoringMode(), Preprocessing(), weights).sha256
    if got != (expected := _field(document, "weights_sha256", str)):
        raise InputError(
            f"golden.json: weights_sha256 is {expected}, but the weights rebuilt from seed {seed} have {got}"
        )
    return weights


@torch.inference_mode()
def check_images(
    model: Model,
    paths: Sequence[str | os.PathLike[str]],
    backend: str = "auto",
    device: str | torch.device | None = None,
    precision: Precision = "float32",
) -> Report:
    """The same images and frozen noise through the engine's backend and through the plain
    definition.

    The definition is `scoring.error_map` with a contiguous network in float32 on the CPU. A verdict
    that differs fails the report however small the errors are.

    Args:
        model: its preprocessing, schedule, noise and threshold are used.
        paths: at least one image file.
        backend: "auto" or one of `registry.NAMES`.
        device, precision: see `registry.create`.

    Raises:
        InputError: there are no images, or one cannot be used.
        BackendError: the backend or device cannot run here.
    """
    engine = Engine(model, backend, device, precision)
    rows = image_rows(model, paths, engine.maps, TOLERANCE[precision])
    return Report(engine.backend, precision, str(engine.device), len(paths), rows)


@torch.inference_mode()
def image_rows(
    model: Model,
    paths: Sequence[str | os.PathLike[str]],
    maps: Callable[[Map], tuple[Map, Map]],
    limit: float,
    flips: float | None = 0.0,
) -> tuple[Row, ...]:
    """The comparison of `check_images` for anything that computes maps.

    Args:
        model: what defines them.
        paths: at least one image file.
        maps: from (B, 3, H, W) to error maps (B, 1, H, W) and anomaly maps (B, 1, 256, 256).
        limit: of relative errors.
        flips: verdicts that may differ; None: any number.

    Raises:
        InputError: there are no images, or one cannot be used.
    """
    if not paths:
        raise InputError("parity: no images were given, at least one is needed")
    network = unet.from_weights(model.network, model.weights)
    mode, errors, scores, expected_scores = model.scoring_mode, [], [], []
    for path in paths:
        x = load_image(path, model.preprocessing).pixels[None]
        if field := mode.error_field:
            field.require_size(x.shape[2:], display_name(path))
        expected = torch.from_numpy(defined(model, network, x))
        error_map, anomaly_map = maps(x)
        errors.append(_relative_rms(torch.from_numpy(error_map), expected))
        scores.append(mode.score(error_map[0, 0], anomaly_map[0, 0]))
        anomalies = scoring.anomaly_map(expected, mode.window)[0, 0].numpy()
        expected_scores.append(mode.score(expected[0, 0].numpy(), anomalies))
    return (
        Row("images", "error_map, largest relative RMS error", float(np.max(errors)), limit),
        Row("images", "pred_score, largest relative error", _relative(scores, expected_scores), limit),
        _correlation_row(scores, expected_scores),
        _flips_row(model, scores, expected_scores, flips),
    )


def _document(folder: Path) -> dict[str, Any]:
    path = folder / "golden.json"
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds {type(document).__name__}, expected an object")
    return document


def _cases(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The cases, with every field of the right type and range."""
    cases: dict[str, dict[str, Any]] = _field(document, "cases", dict)
    if not cases:
        raise InputError("golden.json: cases is empty, expected at least one")
    for name in cases:
        where, case = f"cases.{name}", _field(cases, name, dict, "cases")
        for field in ("batch", "height", "width", "iterations"):
            if _field(case, field, int, where) < 1:
                raise InputError(f"golden.json: {where}.{field} is {case[field]}, expected at least 1")
        _field(case, "sha256", str, where)
        for t in _field(case, "t", list, where):
            if type(t) not in (int, float) or not 0.0 < t <= 1.0:
                raise InputError(f"golden.json: {where}.t holds {t!r}, expected times in (0, 1]")
    return cases


def _field(document: Mapping[str, Any], name: str, kind: type, where: str = "") -> Any:
    value = document.get(name)
    if type(value) is not kind:
        got = "missing" if name not in document else type(value).__name__
        raise InputError(f"golden.json: {where and where + '.'}{name} is {got}, expected {kind.__name__}")
    return value


def _golden_weight(name: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    n = np.random.RandomState(zlib.crc32(name.encode()) ^ seed).standard_normal(shape)
    if name == "embed.0.W":
        n = 30 * n
    elif name.endswith(".bias"):
        n = 0.1 * n
    elif n.ndim == 1:  # the scale of a normalisation
        n = 1 + 0.1 * n
    else:
        n = 1.4 * n / np.sqrt(np.prod(shape[1:]))
    return n.astype(np.float32)


def _arrays(folder: Path, name: str, case: Mapping[str, Any]) -> _Arrays:
    """The arrays of one case, after its hash, shapes and dtypes have been checked."""
    path = confined(folder, f"{name}.npz")
    try:
        with open_regular(path) as stream:
            content = stream.readall()
    except OSError as error:
        raise InputError(f"{path}: is listed in golden.json but cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != case["sha256"]:
        raise InputError(
            f"{path}: its SHA-256 is not the one in golden.json, the file is damaged or of another version"
        )
    batch, height, width, draws = (case[field] for field in ("batch", "height", "width", "iterations"))
    shapes: dict[str, tuple[int, ...]] = {
        "x": (batch, 3, height, width),
        **{f"score_t{index}": (batch, 3, height, width) for index in range(len(case["t"]))},
        "z": (draws, batch, 3, height, width),
        "error_map": (batch, 1, height, width),
        "heatmap": (batch, 1, MAP_SIZE, MAP_SIZE),
        "image_score": (batch,),
    }
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in shapes}
    except Exception as error:  # zipfile and numpy answer a foreign file with almost any type
        raise InputError(f"{path}: is not an .npz file with the arrays {', '.join(shapes)} ({error})") from error
    for key, array in arrays.items():
        if array.shape != shapes[key] or array.dtype != np.float32:
            raise InputError(f"{path}: {key} is {array.dtype} {array.shape}, expected float32 {shapes[key]}")
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


@torch.inference_mode()
def _scores(backend: backends.Backend, t: float, x: Tensor) -> Tensor:
    """s(x, t) of the network that a backend runs: (B, 3, H, W) float64.

    The error map of one draw z is std²/3·|f + z|² with f = std·s, summed over channels. Where the
    image is x - std·z the network reads x for every z. So z = 0, and a constant z in one channel
    after the other, give f by differences.

    Args:
        backend: of one draw at t.
        x: (B, 3, H, W).
    """
    std = sde.std(t)
    z = torch.zeros(4, *x.shape)
    for channel in range(3):
        z[1 + channel, :, channel] = _SHIFT
    errors = backend.maps((x - std * z).flatten(0, 1), [z.flatten(0, 1)[None]])[0]
    squares = errors.cpu().double().reshape(4, len(x), *x.shape[2:]) * (3 / std**2)
    f = (squares[1:] - squares[0] - _SHIFT**2) / (2 * _SHIFT)
    return f.transpose(0, 1) / std


@torch.inference_mode()
def _map_rows(name: str, backend: backends.Backend, arrays: _Arrays, precision: Precision) -> list[Row]:
    errors, anomaly_maps = backend.maps(arrays["x"], [arrays["z"]])
    error = _relative_rms(errors, arrays["error_map"])
    scores = scoring.image_score(anomaly_maps)
    if precision != "float32":
        limit = TOLERANCE[precision]
        relative = _relative(scores.tolist(), arrays["image_score"].tolist())
        return [
            Row(name, "error_map, relative RMS error", error, limit),
            Row(name, "pred_score, largest relative difference", relative, limit),
        ]
    differences = {
        "anomaly_map": _largest_difference(anomaly_maps, arrays["heatmap"]),
        "pred_score": _largest_difference(scores, arrays["image_score"]),
    }
    return [
        Row(name, "error_map, relative RMS error", error, GOLDEN_RMS_TOLERANCE),
        *(Row(name, f"{key}, largest difference", value, GOLDEN_MAP_TOLERANCE) for key, value in differences.items()),
    ]


def _relative_rms(got: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected, in float64; NaN if anything is NaN."""
    reference = expected.double()
    return float(torch.linalg.vector_norm(got.cpu().double() - reference) / torch.linalg.vector_norm(reference))


def _largest_difference(got: Tensor, expected: Tensor) -> float:
    return float((got.cpu().double() - expected.double()).abs().max())


def _relative(got: Sequence[float], expected: Sequence[float]) -> float:
    """Largest relative error; NaN if there is one (Python's max would lose it)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.abs(np.subtract(got, expected)) / np.abs(expected)))


def _correlation_row(scores: Sequence[float], expected: Sequence[float]) -> Row:
    quantity = "pred_score, rank correlation (Spearman)"
    if not np.isfinite([scores, expected]).all():
        return Row("images", quantity, None, None, "a score is NaN or infinite")
    if len(scores) < 3:
        return Row("images", quantity, None, None, f"needs at least 3 images, got {len(scores)}")
    if len(set(scores)) == 1 or len(set(expected)) == 1:
        return Row("images", quantity, None, None, "all scores are equal")
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    return Row("images", quantity, float(spearmanr(scores, expected).statistic), None)


def _flips_row(model: Model, scores: Sequence[float], expected: Sequence[float], limit: float | None) -> Row:
    quantity, threshold = "verdicts that flip", model.scoring_mode.threshold
    if threshold is None:
        return Row("images", quantity, None, None, "the model has no threshold")
    pairs = zip(scores, expected, strict=True)
    flips = sum(verdict(score, threshold) is not verdict(other, threshold) for score, other in pairs)
    return Row("images", quantity, float(flips), limit)
