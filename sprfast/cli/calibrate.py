"""The command `calibrate`: thresholds from good images, or by hand, and the settings that a model
file holds beside the published one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.cli import console, options
from sprfast.cli.options import BackendName, Device, Json, Levels, ModelOrExport, PrecisionName, Runtime
from sprfast.config import PUBLISHED, Schedule
from sprfast.errors import InputError
from sprfast.system import files

if TYPE_CHECKING:
    from sprfast.engine.predictor import Predictor
    from sprfast.formats.model import Model
    from sprfast.method.scoring_mode import ScoringMode


def calibrate(
    model: ModelOrExport,
    good: Annotated[
        Path | None, typer.Argument(metavar="GOOD_DIR", help="Good images that were not trained on.")
    ] = None,
    false_reject_rate: Annotated[float, typer.Option(help="Share of good parts that may be rejected.")] = 0.001,
    false_pixel_rate: Annotated[
        float | None, typer.Option(help="Share of a good part's pixels that may be marked.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Set the threshold by hand instead.")] = None,
    setting: Annotated[
        str, typer.Option(help="published; single or field, which are fitted; or a new one with --level.")
    ] = "published",
    fit: Annotated[
        Path | None, typer.Option(help="Good images to fit the setting on.  [default: every other one of GOOD_DIR]")
    ] = None,
    level: Levels = None,
    noise: Annotated[str, typer.Option(help="Of a new setting: gaussian, signs or none.")] = "gaussian",
    field: Annotated[
        bool, typer.Option("--field", help="Of a new setting: divide the score by the error field.")
    ] = False,
    balance: Annotated[
        bool, typer.Option("--balance", help="Of a new setting: weigh its levels alike over good images.")
    ] = False,
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Take good images that were trained on: the rate then holds for such images only."
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Set the threshold of a model or an export from held-back good images by the conformal
    quantile, or by hand.
    """
    if noise == "antithetic":  # which a stored schedule may still have
        raise InputError("--noise antithetic: is gone, since it gained nothing; choose from gaussian, signs, none")
    if noise != "gaussian" and not level:
        raise InputError(f"--noise {noise}: is for a new --setting, give its --level too")
    schedule = options.schedule(level, noise) if level else None
    rates = false_reject_rate, false_pixel_rate
    request = Request(good, *rates, threshold, setting, fit, schedule, field, balance, force)
    summary = calibrate_file(model, request, Runtime(backend, device, precision))
    console.emit(summary, json_)


@dataclasses.dataclass(frozen=True)
class Request:
    """What to calibrate, and on what."""

    good: Path | None  # folder of good images; None: the threshold is `by_hand`
    false_reject_rate: float = 0.001
    # None: where the score has an error field, that of rejects; else the map has no threshold
    false_pixel_rate: float | None = None
    by_hand: float | None = None
    setting: str = PUBLISHED
    fit: Path | None = None  # folder of good images to fit a setting on; None: every other one of `good`
    # of a new setting; None: the setting is one of `calibration.SETTINGS`
    schedule: Schedule | None = None
    field: bool = False  # of a new setting: its score is divided by an error field
    # of a new setting: its levels are weighted so that their error maps have one mean over good
    # images
    balance: bool = False
    force: bool = False  # take good images that were trained on

    def __post_init__(self) -> None:
        from sprfast.method.scoring_mode import refuse_gone

        refuse_gone(self.setting)
        if (self.good is None) == (self.by_hand is None):
            raise InputError("calibrate: give either GOOD_DIR or --threshold")
        if self.by_hand is not None and (self.fit or self.schedule or self.false_pixel_rate is not None):
            raise InputError("calibrate: a --threshold by hand goes without --fit, --level and --false-pixel-rate")
        if self.setting == PUBLISHED and (self.fit or self.schedule):
            raise InputError(
                "calibrate: --fit and --level are for a --setting other than the published one, which has nothing to "
                "fit"
            )
        if (self.field or self.balance) and not self.schedule:
            raise InputError("calibrate: --field and --balance are for a new --setting, give its --level too")


def calibrate_file(path: Path, request: Request, runtime: Runtime) -> dict[str, Any]:
    """Store a threshold, or a setting with one, in a model file or an export, and describe what was
    stored.

    Raises:
        InputError: among others, the file is being changed by another process, or was meanwhile.
    """
    from sprfast.formats import export as export_file

    with _alone(path) as require_unchanged:
        if export_file.kind(path) != "model":
            return _calibrate_export(path, request, runtime, require_unchanged)
        from sprfast.formats import model as model_file

        model, name = model_file.load(path), request.setting
        used: dict[str, Any] = {}
        if request.by_hand is not None:
            mode = _by_hand(model.using(name).scoring_mode, request.by_hand)
        else:
            mode, used["backend"] = _made(model, request, runtime)
        stored = {"scoring_mode": mode} if name == PUBLISHED else {"scoring_modes": {**model.scoring_modes, name: mode}}
        require_unchanged()
        model_file.save(path, dataclasses.replace(model, **stored))
        return {"model": str(path), "setting": name, **mode.summary(), **used}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Callable[[], None]]:
    """Keep every other `calibrate` and `train` from the file; what is yielded raises InputError
    where something else has changed it meanwhile.
    """
    from sprfast.formats.manifest import file_bytes

    def digest() -> bytes:
        return hashlib.sha256(file_bytes(path)).digest()

    def require_unchanged() -> None:
        if digest() != before:
            raise InputError(f"{path}: was changed while this ran, and stays as it is now; run calibrate again")

    file_bytes(path)  # which says what is wrong with it
    files.check_writable(path)
    with files.exclusive(path):
        before = digest()
        yield require_unchanged


def _calibrate_export(
    path: Path, request: Request, runtime: Runtime, require_unchanged: Callable[[], None]
) -> dict[str, Any]:
    from sprfast.formats import export as export_file
    from sprfast.formats import trained_on

    if request.setting != PUBLISHED:
        raise InputError(f"--setting {request.setting}: an export has the setting that it was exported with")
    exported = export_file.read(path)
    used: dict[str, Any] = {}
    if request.by_hand is not None:
        mode = _by_hand(exported.metadata.scoring_mode, request.by_hand)
    else:
        good = _good_images(request)
        _require_untrained({trained_on.FIELD: exported.metadata.trained_on}, good, request.force)
        runner = runtime.open(path)
        used["backend"] = runner.backend
        mode = _calibrated(runner, good, request)
    metadata = dataclasses.replace(exported.metadata, scoring_mode=mode)
    require_unchanged()
    export_file.write(path, dataclasses.replace(exported, metadata=metadata))
    return {"model": str(path), **mode.summary(), **used}


def _by_hand(mode: ScoringMode, value: float) -> ScoringMode:
    from sprfast.method import threshold

    return dataclasses.replace(mode, threshold=threshold.manual(value))


def _good_images(request: Request) -> list[Path]:
    from sprfast.data import datasets

    assert request.good is not None  # `Request` checks it
    return datasets.image_files([request.good])


def _made(model: Model, request: Request, runtime: Runtime) -> tuple[ScoringMode, str]:
    """The setting that is asked for, fitted and calibrated, and the backend that was used."""
    from sprfast.data import datasets
    from sprfast.evaluation import calibration
    from sprfast.method.scoring_mode import ScoringMode

    def predictor_of(mode: ScoringMode) -> Predictor:
        return runtime.engine(dataclasses.replace(model, scoring_mode=mode))

    good = _good_images(request)
    _require_untrained(model.provenance, good, request.force)
    if request.setting == PUBLISHED:
        mode = model.scoring_mode
    else:
        schedule, field = _recipe(request)
        if field or request.balance:
            fit, good = (datasets.image_files([request.fit]), good) if request.fit else calibration.halves(good)
            _require_disjoint(fit, good)
            if request.fit:
                _require_untrained(model.provenance, fit, request.force)
        elif request.fit:
            raise InputError(f"--fit: setting {request.setting} has nothing to fit")
        if request.balance:
            schedule = calibration.balanced(lambda each: predictor_of(ScoringMode(each)), schedule, fit)
        mode = ScoringMode(schedule)
        if field:
            with console.counter("fitting") as on_image:
                mode = ScoringMode(schedule, calibration.fit_field(predictor_of(mode), fit, on_image))
    predictor = predictor_of(mode)
    return _calibrated(predictor, good, request), predictor.backend


def _recipe(request: Request) -> tuple[Schedule, bool]:
    """Schedule of the setting that is asked for, and whether it has an error field."""
    from sprfast.evaluation import calibration

    if request.schedule:
        return request.schedule, request.field
    if request.setting not in calibration.SETTINGS:
        known = ", ".join((PUBLISHED, *calibration.SETTINGS))
        raise InputError(f"--setting {request.setting}: known are {known}; give --level to make another one")
    return calibration.SETTINGS[request.setting]


def _calibrated(predictor: Predictor, paths: Sequence[Path], request: Request) -> ScoringMode:
    from sprfast.evaluation import calibration

    pixels = request.false_pixel_rate
    if pixels is None and predictor.scoring_mode.error_field is not None:
        pixels = request.false_reject_rate
    with console.counter("calibrating") as on_image:
        return calibration.calibrate(predictor, paths, request.false_reject_rate, pixels, on_image)


def _require_disjoint(fit: Sequence[Path], good: Sequence[Path]) -> None:
    """No image may be fitted on and promised on: its score would be lower than a fresh one's."""
    from sprfast.data import datasets

    both = {datasets.digest(path) for path in fit} & {datasets.digest(path) for path in good}
    if both:
        raise InputError(
            f"calibrate: {len(both)} of the images to fit on are among the good images too, which need others"
        )


def _require_untrained(provenance: Mapping[str, Any], good: Sequence[Path], force: bool) -> None:
    """No image that was trained on may be promised or fitted on: the network knows it, so that its
    errors and its score are lower than a fresh one's.
    """
    from sprfast.data import datasets
    from sprfast.formats import trained_on

    count = trained_on.among(provenance, map(datasets.digest, good))
    if not count:
        return
    known = f"{count} of the {len(good)} good images were trained on"
    if not force:
        raise InputError(f"calibrate: {known}; give others, such as those that `train --hold-back` has left out")
    console.say(f"sprfast: {known}: more good parts will be rejected than the rate says, it holds for such images only")
