"""The command line of `sprfast bench`, as `cli` has that of the other commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import (
    BackendName,
    Category,
    Device,
    Json,
    ModelOrExport,
    ModelPath,
    PrecisionName,
    RunByDefault,
)
from sprfast.errors import InputError

bench = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a model beside its peers (sprfast bench MODEL), or backend cpu by layers; show a report; compare "
    "two.",
)


@bench.command("run", epilog="Example: sprfast bench screw.safetensors --period 100ms -o report.json")
def bench_run(
    model: ModelPath,
    size: Annotated[int | None, typer.Option(help="Pixels at the network's input.  [default: the model's]")] = None,
    batch: Annotated[int, typer.Option(help="Images of an Offline query.")] = 16,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each scenario, over all candidates.  [default: 60]")
    ] = None,
    period: Annotated[
        str | None, typer.Option(help="Of Line, for example 100ms.  [default: 1.25 x the slowest candidate's p90]")
    ] = None,
    latency_bound: Annotated[
        str | None, typer.Option(help="Of Server's p99.  [default: 4 x the slowest candidate's p90]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="15 seconds for each scenario instead of 60.")] = False,
    candidates: Annotated[str | None, typer.Option(help="Names with commas, as in the report.  [default: all]")] = None,
    timed: Annotated[
        str, typer.Option(help="network; maps: from tensor to map; file: from image file to verdict.")
    ] = "maps",
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to send through.  [default: random ones]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labelled test images: sent through, and AUROC for each number of draws.")
    ] = None,
    category: Category = None,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Find backend, batch and draws that hold --period.")
    ] = False,
    margin: Annotated[float, typer.Option(help="Share of the period that a recommended setting leaves free.")] = 0.2,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Report to write (.json), its page beside it (.html).")
    ] = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """MLPerf's scenarios and a line's, beside peers in the same run, with parity and audits;
    MLPerf-style, not an MLPerf result.
    """
    from sprfast.bench.core import cases, report
    from sprfast.cli import bench_commands

    if quick and seconds is not None:
        raise InputError("bench: give either --quick or --seconds")
    options = cases.Options(
        size=size,
        batch=batch,
        seconds=seconds if seconds is not None else bench_commands.QUICK_SECONDS if quick else cases.Options.seconds,
        period=console.seconds(period) if period else None,
        bound=console.seconds(latency_bound) if latency_bound else None,
        device=device,
        timed=timed,
        margin=margin if recommend else None,
    )
    names = candidates.split(",") if candidates else None
    document = bench_commands.run(model, options, names, bench_commands.Sources(images, data, category), output)
    console.emit(document, json_, lambda: report.table(document))
    if not document["complete"]:
        raise typer.Exit(130)
    raise typer.Exit(1 if report.failures(document) else 0)


@bench.command("layers", epilog="Example: sprfast bench layers screw.safetensors --batch 4")
def bench_layers(
    model: ModelPath,
    size: Annotated[int | None, typer.Option(help="Pixels at the network's input.  [default: the model's]")] = None,
    batch: Annotated[int, typer.Option(help="Images of a call.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time for all calls.")] = 10.0,
    json_: Json = False,
) -> None:
    """Time, rate and error of every layer of backend cpu."""
    from sprfast.bench.core import layers
    from sprfast.cli import bench_commands

    document = bench_commands.measure_layers(model, size, batch, seconds)
    console.emit(document, json_, lambda: layers.table(document))


@bench.command("overhead", epilog="Example: sprfast bench overhead screw.safetensors --images held-back-good")
def bench_overhead(
    model: ModelOrExport,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to send through.  [default: random ones]")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for each of four measurements.")] = 20.0,
    backend: BackendName = "auto",
    precision: PrecisionName = "float32",
    device: Device = None,
    json_: Json = False,
) -> None:
    """What `Line` costs over the engine alone; exit 1 beyond a loss of 5 % or an added millisecond,
    or if a score differs.
    """
    from sprfast.bench.line import overhead
    from sprfast.cli import bench_commands
    from sprfast.cli.options import Runtime

    document = bench_commands.measure_overhead(Runtime(backend, device, precision).open(model), images, seconds)
    console.emit(document, json_, lambda: overhead.table(document))
    raise typer.Exit(0 if overhead.passed(document) else 1)


@bench.command("settings", epilog="Example: sprfast bench settings screw.safetensors")
def bench_settings(
    model: ModelPath,
    seconds: Annotated[float, typer.Option(help="Time for calls of one image, and as much again for batches.")] = 20.0,
    backend: BackendName = "auto",
    device: Device = None,
    json_: Json = False,
) -> None:
    """Passes, times and images/s of every setting in the model file, all in turns by one
    backend.
    """
    from sprfast.bench.core import named_settings
    from sprfast.cli import bench_commands

    document = bench_commands.measure_settings(model, backend, device, seconds)
    console.emit(document, json_, lambda: named_settings.table(document))


@bench.command("fleet", epilog="Example: sprfast bench fleet report.json --candidate cpu --load 0.8")
def bench_fleet(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT.json", help="A report of `bench`, or the GPU check's waterfall.json.")
    ],
    candidate: Annotated[str, typer.Option(help="What the engines are, by its name in the report.")] = "cpu",
    engines: Annotated[str, typer.Option(help="Sizes of fleets, with commas.")] = "1,10,100,1000",
    load: Annotated[float, typer.Option(help="Arrivals, as a share of what all engines together can do.")] = 0.8,
    queue: Annotated[int, typer.Option(help="Images that may wait at an engine.")] = 64,
    image_kib: Annotated[float, typer.Option(help="Of an image on the network.")] = 100.0,
    link_gbit: Annotated[float, typer.Option(help="Of a host.")] = 25.0,
    host: Annotated[int, typer.Option(help="Engines of a host, at most.")] = 8,
    json_: Json = False,
) -> None:
    """Throughput and latency of many engines, simulated from the measured times of one, with what
    is assumed.
    """
    from sprfast.bench.core import fleet

    if not all(each.strip().isdecimal() for each in engines.split(",")):
        raise InputError(f"--engines {engines!r}: write whole numbers with commas, for example 1,10,100")
    assumed = fleet.Assumptions(load=load, queue=queue, image_kib=image_kib, link_gbit=link_gbit, host=host)
    document = fleet.measure(report, candidate, tuple(int(each) for each in engines.split(",")), assumed)
    console.emit(document, json_, lambda: fleet.table(document))


@bench.command("show", epilog="Example: sprfast bench show report.json --page report.html")
def bench_show(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A report that `bench` wrote.")],
    page: Annotated[Path | None, typer.Option(help="Write its page here (HTML).")] = None,
    json_: Json = False,
) -> None:
    """Print a report again, or make its page."""
    from sprfast.cli import bench_commands

    document, table = bench_commands.show(report, page)
    console.emit(document, json_, lambda: table)


@bench.command("compare", epilog="Example: sprfast bench compare before.json after.json --regression 0.1")
def bench_compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="A report that `bench` wrote.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="A later one of the same work.")],
    regression: Annotated[float, typer.Option(help="Share of a speed that may be lost.")] = 0.1,
    json_: Json = False,
) -> None:
    """Speed of one report relative to another, with 95 % intervals; exit 1 on a regression."""
    from sprfast.bench.core import compare, report_file

    comparison = compare.compare(report_file.load(old), report_file.load(new), regression=regression)
    console.emit(comparison.to_json(), json_, comparison.table)
    raise typer.Exit(1 if comparison.regressions else 0)
