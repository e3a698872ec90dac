"""The command `calibrate`: thresholds from good images, or by hand, and the settings that a model
file holds beside the published one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprfast.cli import calibration_images, console, options
from sprfast.cli.calibration_request import AUTO, Request
from sprfast.cli.data_source import DataSource, Recursive
from sprfast.cli.options import BackendName, Device, Json, Levels, ModelOrExport, PrecisionName, Runtime
from sprfast.config import PUBLISHED
from sprfast.errors import InputError
from sprfast.system import files

if TYPE_CHECKING:
    from rich.table import Table

    from sprfast.engine.predictor import Predictor
    from sprfast.formats.model import Model
    from sprfast.method.scoring_mode import ScoringMode

USUAL_RATE = 0.001  # of good parts that may be rejected


def calibrate(
    model: ModelOrExport,
    good: Annotated[
        Path | None,
        typer.Argument(metavar="GOOD_DIR", help="Good images that were not trained on; where those held back are now."),
    ] = None,
    held_back: Annotated[
        bool, typer.Option("--held-back", help="Take the images that `train --hold-back` left out.")
    ] = False,
    bad: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of bad images, to choose by and to see what the threshold catches; repeatable."),
    ] = None,
    recursive: Recursive = False,
    false_reject_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of good parts that may be rejected.  [default: 0.001, or the lowest that so few images allow]"
        ),
    ] = None,
    false_pixel_rate: Annotated[
        float | None, typer.Option(help="Share of a good part's pixels that may be marked.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Set the threshold by hand instead.")] = None,
    setting: Annotated[
        str,
        typer.Option(
            help="published, single, noiseless, multi or field; auto: what suits the parts; one that the model has; or "
            "a new one with --level."
        ),
    ] = "published",
    fit: Annotated[
        Path | None,
        typer.Option(help="Good images to choose and fit the setting on.  [default: every other one of GOOD_DIR]"),
    ] = None,
    level: Levels = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Side of what the anomaly map averages, at the network's input.  [default: 31 of its 256 pixels]"
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Restore images with a longer side at the network's input in tiles of that side; needs --window."
        ),
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="Of a new setting: gaussian, signs or none.  [default: gaussian]")
    ] = None,
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
    from sprfast.evaluation import calibration

    if noise == "antithetic":  # which a stored schedule may still have
        raise InputError("--noise antithetic: is gone, since it gained nothing; choose from gaussian, signs, none")
    if noise and not level:
        raise InputError(f"--noise {noise}: is for a new --setting, give its --level too")
    if noise and setting in calibration.SETTINGS:
        raise InputError(f"--noise {noise}: is for a new --setting, {setting} has its own")
    schedule = options.schedule(level, noise or "gaussian") if level else None
    rates = false_reject_rate, false_pixel_rate
    bad_folders = tuple(bad or ())
    request = Request(
        good,
        *rates,
        threshold,
        setting,
        fit,
        schedule,
        field,
        balance,
        window,
        tile,
        force,
        held_back,
        bad_folders,
        recursive,
    )
    summary = calibrate_file(model, request, Runtime(backend, device, precision))
    console.emit(summary, json_, lambda: _table(summary))
    if not json_:
        console.say_next(*_next_step(model, request, summary.get("setting", setting)))


def _table(summary: dict[str, Any]) -> Table:
    """What a person wants to know of a calibration; `info` has the rest."""
    threshold = summary["threshold"]
    rows = {"model": summary["model"], "setting": summary.get("setting", ""), "threshold": f"{threshold['value']:.6g}"}
    if samples := threshold["samples"]:
        from sprfast.method.threshold import lowest_rate

        promise = f"at most {_percent(threshold['false_reject_rate'])} of good parts are rejected, on average"
        rows["promise"] = promise
        rows["good images"] = f"{samples}, which allow {_percent(lowest_rate(samples))} at the lowest"
    if chosen := summary.get("choice"):
        rows["chosen by"] = f"{chosen['by']} against {chosen['good']} good ones"
        for each in chosen["settings"]:
            rows[f"image_AUROC of {each['setting']}"] = f"{100 * each['image_AUROC']:.1f} % (passes: {each['passes']})"
    if found := summary.get("bad"):
        rows["bad images"] = f"{found['caught']} of {found['images']} are caught"
        for row in found["missed"]:
            of = f" ({row['pred_score'] / threshold['value']:.2f} of it)" if threshold["value"] > 0 else ""
            rows[f"missed {row['path']}"] = f"{row['pred_score']:.6g}{of}"
    return console.fields_table({name: value for name, value in rows.items() if value})


def _percent(rate: float) -> str:
    return f"{100 * rate:.2g} %"


def _next_step(path: Path, request: Request, name: str) -> list[str]:
    """Look at what was trained on where there are bad images too, else at new images, by the
    setting of this name.
    """
    from sprfast.formats import export as export_file

    setting = [] if name == PUBLISHED else ["--setting", name]
    if request.bad and export_file.kind(path) == "model":
        from sprfast.formats import model as model_file

        source = DataSource.of_training(model_file.load(path).provenance)
        if source and source.good and not source.bad:
            source = dataclasses.replace(source, bad=str(request.bad[0]))
        if source:
            return ["evaluate", str(path), *source.arguments(), *setting]
    return ["predict", str(path), "NEW_IMAGES", *setting, "-o", "results"]


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
        if name in model.scoring_modes and request.by_hand is None and not request.changed:
            request = request.as_stored(model.scoring_modes[name])
        if request.by_hand is not None:
            mode = _by_hand(model.using(name).scoring_mode, request.by_hand)
            bad = _bad_images(request, [])
        else:
            good = calibration_images.good(request.good, request.held_back, request.recursive, model.provenance)
            bad = _bad_images(request, good)
            name, mode, used = _made(model, good, bad, request, runtime)
        if bad:
            predictor = runtime.engine(dataclasses.replace(model, scoring_mode=mode))
            used["bad"] = _caught(predictor, mode, bad)
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
        bad = _bad_images(request, [])
    else:
        if request.held_back:
            raise InputError(
                "--held-back: an export does not say which images were held back; calibrate its model with it and "
                "export that, or give good images that were not trained on as GOOD_DIR"
            )
        known = {trained_on.FIELD: exported.metadata.trained_on}
        good = calibration_images.good(request.good, False, request.recursive, known)
        bad = _bad_images(request, good)
        calibration_images.require_untrained(known, good, request.force)
        runner = runtime.open(path)
        used["backend"] = runner.backend
        mode = _calibrated(runner, good, _rate(request, len(good)), request)
    if bad:
        used["bad"] = _caught(runtime.open(path), mode, bad)
    metadata = dataclasses.replace(exported.metadata, scoring_mode=mode)
    require_unchanged()
    export_file.write(path, dataclasses.replace(exported, metadata=metadata))
    return {"model": str(path), **mode.summary(), **used}


def _by_hand(mode: ScoringMode, value: float) -> ScoringMode:
    from sprfast.method import threshold

    return dataclasses.replace(mode, threshold=threshold.manual(value))


def _bad_images(request: Request, good: Sequence[Path]) -> list[Path]:
    return calibration_images.bad(request.bad, request.recursive, good) if request.bad else []


def _caught(predictor: Predictor, mode: ScoringMode, bad: Sequence[Path]) -> dict[str, Any]:
    """What the threshold makes of the bad images."""
    from sprfast.evaluation import calibration

    assert mode.threshold is not None  # as it was just made
    with console.counter("scoring bad images") as on_image:
        return calibration.caught(predictor, mode.threshold, bad, on_image)


def _made(
    model: Model, good: list[Path], bad: list[Path], request: Request, runtime: Runtime
) -> tuple[str, ScoringMode, dict[str, Any]]:
    """Name of the setting that is asked for or chosen; it, fitted and calibrated; and what was used
    for it.
    """
    from sprfast.evaluation import calibration

    def predictor_of(mode: ScoringMode) -> Predictor:
        return runtime.engine(dataclasses.replace(model, scoring_mode=mode))

    calibration_images.require_untrained(model.provenance, good, request.force)
    name, used = request.setting, {}
    setting = None if name in (PUBLISHED, AUTO) else request.made_of()
    fit: list[Path] = []
    if name == AUTO or (setting and setting.fitted):
        fit, good = calibration_images.parted(good, request.fit, request.recursive, model.provenance, request.force)
    elif request.fit:
        raise InputError(f"--fit: setting {name} has nothing to fit")
    rate = _rate(request, len(good))
    if name == AUTO:
        name, used["choice"] = _chosen(model, predictor_of, fit, bad)
        setting = calibration.SETTINGS.get(name)
    mode = model.scoring_mode
    if setting:
        with console.counter("fitting") as on_image:
            mode = calibration.fitted(setting, predictor_of, fit, on_image)
    predictor = predictor_of(mode)
    return name, _calibrated(predictor, good, rate, request), {**used, "backend": predictor.backend}


def _chosen(
    model: Model, predictor_of: Callable[[ScoringMode], Predictor], fit: list[Path], bad: list[Path]
) -> tuple[str, dict[str, Any]]:
    """Name of the setting that tells bad images, or painted ones, best from good ones, and the
    figures of all.
    """
    from sprfast.evaluation import choice

    with console.counter("choosing") as on_setting:
        tried = choice.try_all(model.scoring_mode, predictor_of, fit, bad, on_setting)
    by = f"{len(bad)} bad images" if bad else f"{len(fit) * choice.PAINTED} good images with painted defects"
    figures = {"by": by, "good": len(fit), "settings": [each.to_json() for each in tried]}
    return choice.best(tried).setting, figures


def _rate(request: Request, samples: int) -> float:
    """The rate that is asked for or usual, which so many good images allow."""
    from sprfast.method import threshold

    rate = request.false_reject_rate
    if rate is None:
        rate = max(USUAL_RATE, threshold.lowest_rate(samples))
    threshold.rank_of(samples, rate)
    return rate


def _calibrated(predictor: Predictor, paths: Sequence[Path], rate: float, request: Request) -> ScoringMode:
    from sprfast.evaluation import calibration

    pixels = request.false_pixel_rate
    if pixels is None and predictor.scoring_mode.error_field is not None:
        pixels = rate
    with console.counter("calibrating") as on_image:
        return calibration.calibrate(predictor, paths, rate, pixels, on_image)
