"""The group `study` with its commands."""

from __future__ import annotations

import typer

from sprfast.cli.command import add
from sprfast.cli.options import RunByDefault
from sprfast.cli.study.curve import curve
from sprfast.cli.study.run import run
from sprfast.cli.study.show import show

study = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="What each way of scoring is worth and costs on labelled images (sprfast study DATA MODEL...); curves; "
    "reports again.",
)
for name, command, example in (
    ("run", run, "mvtec screw-0.safetensors screw-1.safetensors --category screw -o screw.json"),
    ("curve", curve, "curve mvtec screw-*.safetensors --category screw --figure screw.png"),
    ("show", show, "show bench/results/study-*.json bench/results/curve-*.json"),
):
    add(study, name, command, f"study {example}")
