"""The command line of `sprfast study`, as `cli` has that of the other commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sprfast.cli import console
from sprfast.cli.options import BackendName, Category, Device, Json, RunByDefault

study = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What each way of scoring is worth and costs on labelled images (sprfast study DATA MODEL...); curves; "
    "reports again.",
)


@study.command(
    "run", epilog="Example: sprfast study mvtec screw-0.safetensors screw-1.safetensors --category screw -o screw.json"
)
def study_run(
    data: Annotated[Path, typer.Argument(help="A data set or a category, with test images.")],
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Trained with --hold-back, of one size, with several seeds."),
    ],
    category: Category = None,
    good: Annotated[
        Path | None, typer.Option(help="Good images to fit on.  [default: those that each training held back]")
    ] = None,
    backend: BackendName = "auto",
    device: Device = None,
    seconds: Annotated[
        float, typer.Option(help="For the measurement of times, of one image a call and as much of a batch.")
    ] = 20.0,
    quick: Annotated[bool, typer.Option("--quick", help="Only the named settings: a quarter of the passes.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report to write (JSON).")] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture of AUROC against time to write (PNG).")] = None,
    json_: Json = False,
) -> None:
    """AUROC, AUPRO, caught defects and time of draws, levels, noises and settings; and whether
    thresholds keep their rates.
    """
    from sprfast.bench.accuracy import report
    from sprfast.cli import study_commands

    document = study_commands.run(data, category, models, good, backend, device, seconds, quick, output, figure)
    console.emit(document, json_, lambda: report.table(document))


@study.command(
    "curve", epilog="Example: sprfast study curve mvtec screw-*.safetensors --category screw --figure screw.png"
)
def study_curve(
    data: Annotated[Path, typer.Argument(help="A data set or a category, with test images.")],
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Trained with --time-limit, of one size, by either recipe.")
    ],
    category: Category = None,
    backend: BackendName = "auto",
    device: Device = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report to write (JSON).")] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture of AUROC against minutes to write (PNG).")] = None,
    json_: Json = False,
) -> None:
    """AUROC, AUPRO and caught defects against minutes of training, for each recipe, scored by the
    published setting.
    """
    from sprfast.bench.accuracy import curve
    from sprfast.cli import study_commands

    document = study_commands.run_curve(data, category, models, backend, device, output, figure)
    console.emit(document, json_, lambda: curve.table(document))


@study.command("show", epilog="Example: sprfast study show bench/results/study-*.json bench/results/curve-*.json")
def study_show(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT...", help="Reports of `sprfast study` and `sprfast study curve`.")
    ],
    json_: Json = False,
) -> None:
    """One report again, or the named settings of several; and every curve."""
    from sprfast.cli import study_commands

    documents, table = study_commands.show(reports)
    console.emit({"reports": documents}, json_, lambda: table)
