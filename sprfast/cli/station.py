"""The command `station`: a camera, a line and a page."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sprfast.cli import console
from sprfast.cli.calibrate import calibrate_file
from sprfast.cli.calibration_request import Request
from sprfast.cli.options import BackendName, Device, ModelOrExport, PrecisionName, Runtime, SettingName
from sprfast.errors import InputError

if TYPE_CHECKING:
    from sprfast.config import Preprocessing
    from sprfast.engine.predictor import Predictor
    from sprfast.line import Answer
    from sprfast.line.sources import FolderWatch, Stream

PERIOD = 0.1  # seconds from one simulated trigger to the next


def station(
    model: ModelOrExport,
    camera: Annotated[str | None, typer.Option(help="Number of a device, a URL, or a recording.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder in which pictures appear.")] = None,
    simulate: Annotated[
        Path | None, typer.Option(help="Folder of images of one size, which a camera seems to show.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of the simulated camera.  [default: it goes on]")] = None,
    faults: Annotated[float, typer.Option(help="Share of the simulated frames that are spoilt.")] = 0.0,
    period: Annotated[
        str | None, typer.Option(help="Time between two triggers, where they keep a pace.  [simulated: 100ms]")
    ] = None,
    deadline: Annotated[str | None, typer.Option(help="From a trigger to its answer.  [default: the period]")] = None,
    host: Annotated[
        str, typer.Option(help="Address of the page; beyond this machine it asks for the token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes a free one.")] = 8420,
    sink: Annotated[
        list[str] | None,
        typer.Option(help="Where verdicts go: modbus://HOST, opcua://HOST, mqtt://HOST/TOPIC or http://…; repeatable."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="Log of verdicts to append to, whose records are chained by SHA-256.")
    ] = None,
    good: Annotated[
        Path | None, typer.Option(help="Folder for pictures marked as good.  [default: MODEL-good, beside MODEL]")
    ] = None,
    false_reject_rate: Annotated[
        float | None, typer.Option(help="Of a recalibration.  [default: that of the model's threshold]")
    ] = None,
    setting: SettingName = "published",
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
) -> None:
    """Score what a camera shows, print every reject, and serve a page of it, until the camera ends
    or a signal comes.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # its warnings at each attempt to open a camera say no more
    from sprfast.line.sinks import open_sink
    from sprfast.line.sinks.log import LogSink
    from sprfast.line.station import Station
    from sprfast.system.libraries import require
    from sprfast.system.signals import stop_signals

    for library in ("starlette", "uvicorn", "matplotlib", "scipy"):
        require(library, "station")
    from sprfast.line.station.server import Server

    _check(camera, folder, simulate, frames, faults)
    pace = console.seconds(period) if period else PERIOD if simulate else None
    limit = console.seconds(deadline) if deadline else pace
    runtime = Runtime(backend, device, precision, setting)
    predictor = runtime.open(model)
    source = _source(camera, folder, simulate, predictor.preprocessing, frames, faults, pace)

    def calibrated(path: Path, images: Path) -> None:
        rate = _rate(running.predictor) if false_reject_rate is None else false_reject_rate
        request = Request(images, rate, setting=setting).as_stored(running.predictor.scoring_mode)
        calibrate_file(path, request, Runtime(backend, device, precision))

    with contextlib.ExitStack() as opened:
        opened.enter_context(_logged())
        sinks = [opened.enter_context(contextlib.closing(open_sink(url))) for url in sink or ()]
        logged = opened.enter_context(contextlib.closing(LogSink(log, predictor))) if log else None
        running = Station(
            model,
            predictor,
            source,
            opened=runtime.open,
            calibrated=calibrated,
            good=good or model.with_name(f"{model.stem}-good"),
            swapped=logged.swap if logged else lambda _: None,
            listeners=[_Printed(), *sinks, *filter(None, [logged])],
            deadline=limit,
        )
        with running, stop_signals(source.close) as stop, Server(running, host, port) as server:
            console.end_progress()
            console.say(f"page: {server.url}")
            running.line.wait_until_started()
            print("ready", flush=True)
            drained = running.run()
            health = running.line.health()
    counts = {"taken": health.taken, "refused": health.refused, "drained": drained, **health.verdicts}
    print(json.dumps({**counts, "errors": health.errors}), flush=True)
    if logged and (unwritten := logged.fault()):
        raise InputError(unwritten)
    raise typer.Exit(stop.exit_code)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Say on stderr what becomes of the camera and the sinks, and what fails. Frames without a
    verdict are on stdout already.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    loggers = {logging.getLogger("sprfast.sources"): logging.INFO, logging.getLogger("sprfast.line"): logging.ERROR}
    logging.getLogger("sprfast.line.sinks").setLevel(logging.INFO)  # heard by the handler of the logger above it
    for logger, level in loggers.items():
        logger.setLevel(level)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class _Printed:
    """A line on stdout for each part that must not pass."""

    def deliver(self, answer: Answer) -> None:
        """Print it."""
        if answer.verdict != "PASS":
            print(f"reject {answer.id}: {answer.result.reason or f'score {answer.result.pred_score:.4g}'}", flush=True)

    def fault(self) -> str:
        """None is known."""
        return ""

    def close(self, timeout: float = 2.0) -> None:
        """Nothing is open."""


def _check(camera: str | None, folder: Path | None, simulate: Path | None, frames: int | None, faults: float) -> None:
    if sum(each is not None for each in (camera, folder, simulate)) != 1:
        raise InputError("station: give one of --camera, --folder and --simulate")
    if simulate is None and (frames is not None or faults):
        raise InputError("station: --frames and --faults are of the camera of --simulate")
    if faults and frames is None:
        raise InputError("--faults: is a share of --frames, give them too")


def _source(
    camera: str | None,
    folder: Path | None,
    simulate: Path | None,
    preprocessing: Preprocessing,
    frames: int | None,
    faults: float,
    pace: float | None,
) -> Stream | FolderWatch:
    """Frames of the one that is given."""
    from sprfast.data import datasets, images
    from sprfast.line import sources
    from sprfast.line.frames import FrameFormat

    if folder is not None:
        return sources.FolderWatch(folder)
    if camera is not None:
        device = int(camera) if camera.isdecimal() else camera
        return sources.Stream(lambda: sources.OpenCvCamera(device), period=pace)
    assert simulate is not None  # as `_check` says
    pictures = [images.read_rgb(path, preprocessing) for path in datasets.image_files([simulate])]
    spoilt = sources.simulated_faults(frames, faults) if frames and faults else {}
    simulation = sources.SimulatedLine(pictures, "rgb", frames=frames, period=pace or PERIOD, faults=spoilt)
    height, width = pictures[0].shape[:2]
    declared = FrameFormat(height, width, "rgb")
    return sources.Stream(simulation.open, declared, period=pace, first_wait=0.01)


def _rate(predictor: Predictor) -> float:
    """The false-reject rate that the model's threshold was made for."""
    threshold = predictor.threshold
    if threshold is None or threshold.source == "manual":
        raise InputError("the threshold was set by hand; start the station with --false-reject-rate")
    return threshold.false_reject_rate
