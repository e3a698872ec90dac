"""What a model is made of, as frozen dataclasses whose fields are checked on construction.

Each class has `to_json` (a dict of plain values) and `from_json` (which names the field that is
missing, unknown or out of range).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sprfast.errors import InputError

GROUPS = 32  # of every GroupNorm in the network
PUBLISHED = "published"  # the scoring mode of the definition, which every model has

SizePolicy = Literal["fit", "stretch", "refuse"]
AlphaPolicy = Literal["refuse", "composite"]
OrientationPolicy = Literal["exif", "ignore"]
FramePolicy = Literal["refuse", "first"]
ProfilePolicy = Literal["refuse", "convert"]
TimeSampling = Literal["uniform", "log_uniform"]
Decay = Literal["steps", "cosine"]
# of draws, see `noise.draws`; "antithetic" is for stored schedules only
Noise = Literal["gaussian", "antithetic", "signs", "none"]
# of stored feature maps; statistics, residual and maps are float32 throughout
Precision = Literal["float32", "bfloat16", "float16"]
TrainingPrecision = Literal["float32", "bfloat16"]


class _Config:
    """JSON to and from a frozen dataclass, strict in both names and types."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_json(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            raise InputError(f"{cls.__name__}: expected an object, got {type(document).__name__}")
        hints = get_type_hints(cls)
        values = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.name in document:
                values[field.name] = checked(f"{cls.__name__}.{field.name}", hints[field.name], document[field.name])
            elif field.default is dataclasses.MISSING:
                raise InputError(f"{cls.__name__}.{field.name}: missing")
        return cls(**values)


def checked(name: str, hint: Any, value: Any) -> Any:
    """A value from JSON as the type `hint`, by `from_json` where it has one.

    Raises:
        InputError: it is of another type, or a value in it is not allowed; the message begins with
            `name`.
    """
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is tuple and isinstance(value, list):
        return tuple(checked(f"{name}[{i}]", arguments[0], item) for i, item in enumerate(value))
    if hasattr(hint, "from_json"):
        try:
            return hint.from_json(value)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    if kind is Literal:
        if value in arguments:
            return value
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    allowed = f"one of {', '.join(map(str, arguments))}" if kind is Literal else kind.__name__
    raise InputError(f"{name}: {value!r} is not allowed, expected {allowed}")


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """Raise InputError, with the value given and what is allowed, unless `condition` holds."""
    if not condition:
        raise InputError(f"{name}: {value!r} is not allowed, expected {allowed}")


@dataclasses.dataclass(frozen=True)
class NetworkConfig(_Config):
    """The score U-Net (supplement, Table 1; widths as the published checkpoints have them)."""

    base_width: int = 64  # channels of the first block, a multiple of 32; cost grows with its square
    embedding_dim: int = 256  # length of the time embedding, even

    def __post_init__(self) -> None:
        width, length = self.base_width, self.embedding_dim
        require(32 <= width <= 1024 and width % 32 == 0, "base_width", width, "a multiple of 32 up to 1024")
        require(2 <= length <= 4096 and length % 2 == 0, "embedding_dim", length, "an even number from 2 to 4096")


@dataclasses.dataclass(frozen=True)
class Level(_Config):
    """One sigma level: `draws` perturbations at time `t`, its error map weighted by `weight`."""

    t: float = 1e-3  # time of the variance-exploding SDE, in [1e-8, 1], below which squares lose digits; sigma = std(t)
    draws: int = 3  # K, network passes an image
    weight: float = 1.0  # relative; weights are normalised to sum to 1

    def __post_init__(self) -> None:
        require(1e-8 <= self.t <= 1.0, "t", self.t, "a time in [1e-8, 1]")
        require(1 <= self.draws <= 1024, "draws", self.draws, "1 to 1024")
        require(0.0 < self.weight < math.inf, "weight", self.weight, "a positive number")


@dataclasses.dataclass(frozen=True)
class Schedule(_Config):
    """The sigma levels of a score. The default is the published setting: t = 1e-3, K = 3."""

    levels: tuple[Level, ...] = (Level(),)
    noise: Noise = "gaussian"

    def __post_init__(self) -> None:
        require(1 <= len(self.levels) <= 64, "levels", len(self.levels), "1 to 64 levels")
        total = sum(level.weight for level in self.levels)
        require(total < math.inf, "weights", total, "a finite sum")
        for level in self.levels:
            unpaired = self.noise == "antithetic" and level.draws % 2 == 1
            require(not unpaired, "draws", level.draws, "an even number for antithetic noise")
            repeated = self.noise == "none" and level.draws > 1
            require(not repeated, "draws", level.draws, "1 without noise, where all draws are the same")

    @classmethod
    def from_json(cls, document: Any) -> Any:
        """The schedule of `to_json`, or of a file of format 1, which has a field `antithetic`."""
        if isinstance(document, dict) and document.get("antithetic"):
            document = {"noise": "antithetic", **document}
        return super().from_json(document)

    @property
    def draws(self) -> int:
        """Network passes an image, over all levels."""
        return sum(level.draws for level in self.levels)

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight a level, summing to 1."""
        total = sum(level.weight for level in self.levels)
        return tuple(level.weight / total for level in self.levels)


@dataclasses.dataclass(frozen=True)
class Preprocessing(_Config):
    """The contract between an image file or frame and the network's input in [-1, 1].

    `images.py` carries it out and the README states it in full.
    """

    size: int = 192  # pixels: shorter side for `fit`, both sides for `stretch` and `refuse`
    size_policy: SizePolicy = "fit"  # fit keeps the aspect; stretch does not; refuse takes square images only
    bit_depth: int = 16  # significant bits of 16-bit images: 8 to 16; 10- and 12-bit cameras must say so
    alpha: AlphaPolicy = "refuse"  # composite: over black
    orientation: OrientationPolicy = "exif"  # exif: turn the image as its EXIF tag says
    frames: FramePolicy = "refuse"  # animated and multi-page files: refuse, or take the first frame
    max_pixels: int = 89_478_485  # of the source, checked in the header before decoding
    profiles: ProfilePolicy = "convert"  # embedded RGB profiles other than sRGB: refuse, or convert to sRGB

    def __post_init__(self) -> None:
        require(16 <= self.size <= 4096, "size", self.size, "16 to 4096 pixels")
        require(8 <= self.bit_depth <= 16, "bit_depth", self.bit_depth, "8 to 16")
        require(1 <= self.max_pixels <= 2**31, "max_pixels", self.max_pixels, "1 to 2**31")

    @classmethod
    def from_json(cls, document: Any) -> Any:
        """The contract of `to_json`, or of a file from before profiles were converted: it refuses
        them.
        """
        if isinstance(document, dict):
            document = {"profiles": "refuse", **document}
        return super().from_json(document)


@dataclasses.dataclass(frozen=True)
class TrainingConfig(_Config):
    """How to train, by default the published recipe; exactly one of `epochs`, `steps` and
    `time_limit` is positive.
    """

    epochs: int = 3000  # passes over the training images; 0 where another limit is given
    steps: int = 0  # optimizer steps; 0: not limited by steps
    time_limit: float = 0.0  # seconds of training; 0: not limited by time
    batch_size: int = 16  # global, over all processes
    learning_rate: float = 1e-4  # AdamW
    weight_decay: float = 1e-3
    warm_up: int = 0  # steps over which the learning rate rises to its value
    # of the learning rate: a factor `decay_factor` at 1/3 and 2/3 of the limit, or a half cosine to
    # 0
    decay: Decay = "steps"
    decay_factor: float = 0.1
    ema_decay: float = 0.9999  # reached by min(ema_decay, (1 + step) / (10 + step))
    t_sampling: TimeSampling = "uniform"  # of t on [t_min, t_max]; log_uniform: of its logarithm
    t_min: float = 1e-5
    t_max: float = 1.0
    brightness: float = 0.0  # largest change of an image's brightness, as the logarithm of a factor
    corrupted: float = 0.0  # share of the images into which shapes are painted, for the network to take out
    hold_back: float = 0.0  # share of the images, drawn by the seed, that is not trained on
    seed: int = 0
    # of convolutions and linear layers; weights, statistics and loss are float32 throughout
    precision: TrainingPrecision = "float32"

    def __post_init__(self) -> None:
        limits = sum(value > 0 for value in (self.epochs, self.steps, self.time_limit))
        require(limits == 1, "epochs, steps, time_limit", limits, "exactly one positive limit")
        for name, count in (("epochs", self.epochs), ("steps", self.steps)):
            require(0 <= count < 2**40, name, count, "a count")
        require(0.0 <= self.time_limit < math.inf, "time_limit", self.time_limit, "a number of seconds")
        require(1 <= self.batch_size <= 65536, "batch_size", self.batch_size, "1 to 65536")
        require(0.0 < self.learning_rate < 1.0, "learning_rate", self.learning_rate, "a rate in (0, 1)")
        require(0.0 <= self.weight_decay < 1.0, "weight_decay", self.weight_decay, "a number in [0, 1)")
        require(0.0 < self.decay_factor <= 1.0, "decay_factor", self.decay_factor, "a number in (0, 1]")
        require(0.0 <= self.ema_decay < 1.0, "ema_decay", self.ema_decay, "a number in [0, 1)")
        require(0 <= self.warm_up < 2**40, "warm_up", self.warm_up, "a number of steps")
        require(0.0 < self.t_min < 1.0, "t_min", self.t_min, "a time in (0, 1)")
        require(self.t_min < self.t_max <= 1.0, "t_max", self.t_max, f"a time in ({self.t_min}, 1]")
        require(0.0 <= self.brightness <= 1.0, "brightness", self.brightness, "a number in [0, 1]")
        require(0.0 <= self.corrupted <= 1.0, "corrupted", self.corrupted, "a share in [0, 1]")
        require(0.0 <= self.hold_back < 1.0, "hold_back", self.hold_back, "a share in [0, 1)")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")
        known = get_args(TrainingPrecision)
        require(self.precision in known, "precision", self.precision, f"one of {', '.join(known)}")
