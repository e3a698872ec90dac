"""The command `bench fleet`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import Json
from sprfast.errors import InputError


def fleet(
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
    from sprfast.bench.core import fleet as simulation

    if not all(each.strip().isdecimal() for each in engines.split(",")):
        raise InputError(f"--engines {engines!r}: write whole numbers with commas, for example 1,10,100")
    assumed = simulation.Assumptions(load=load, queue=queue, image_kib=image_kib, link_gbit=link_gbit, host=host)
    document = simulation.measure(report, candidate, tuple(int(each) for each in engines.split(",")), assumed)
    console.emit(document, json_, lambda: simulation.table(document))
