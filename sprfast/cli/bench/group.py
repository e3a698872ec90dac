"""The group `bench` with its commands."""

from __future__ import annotations

import typer

from sprfast.cli.bench.compare import compare
from sprfast.cli.bench.fleet import fleet
from sprfast.cli.bench.layers import layers
from sprfast.cli.bench.overhead import overhead
from sprfast.cli.bench.run import run
from sprfast.cli.bench.settings import settings
from sprfast.cli.bench.show import show
from sprfast.cli.command import add
from sprfast.cli.options import RunByDefault

bench = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure a model beside its peers (sprfast bench MODEL), or backend cpu by layers; show a report; compare "
    "two.",
)
for name, command, example in (
    ("run", run, "screw.safetensors --period 100ms -o report.json"),
    ("layers", layers, "layers screw.safetensors --batch 4"),
    ("overhead", overhead, "overhead screw.safetensors --images held-back-good"),
    ("settings", settings, "settings screw.safetensors"),
    ("fleet", fleet, "fleet report.json --candidate cpu --load 0.8"),
    ("show", show, "show report.json --page report.html"),
    ("compare", compare, "compare before.json after.json --regression 0.1"),
):
    add(bench, name, command, f"bench {example}")
