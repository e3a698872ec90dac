"""The command `export`, and what it and `info` say of an export."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.table import Table

from sprfast.cli import console
from sprfast.data import datasets as data
from sprfast.errors import InputError
from sprfast.formats import model as model_file
from sprfast.formats.export_metadata import ExportMetadata

if TYPE_CHECKING:
    from sprfast.deploy.export import Request
    from sprfast.deploy.triton_server.repository import Serving


REPOSITORY = "triton-repository"  # what `--to` calls it


def request(to: str, size: str | None, batch: int | None, precision: str, quantize: str | None) -> Request:
    """What the options ask for.

    Raises:
        InputError: one of them is not allowed.
    """
    from sprfast.deploy.export import Request, Target

    if to not in get_args(Target):
        raise InputError(f"--to {to}: not known, choose from {', '.join(get_args(Target))}, {REPOSITORY}")
    return Request(to, _size(size), batch, precision, quantize)  # type: ignore[arg-type]  # it checks them


def export(model: Path, output: Path, asked: Request, images: Path | None, setting: str) -> dict[str, Any]:
    """Export a model with one of its settings, and describe the file."""
    from sprfast.deploy import export as exporting

    paths = data.image_files([images]) if images else []
    return describe(output, exporting.export(model_file.load(model).using(setting), output, asked, paths))


def refuse(to: str, options: Mapping[str, Any]) -> None:
    """Raise InputError where an option is given that exports of another kind have."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')}: --to {to} has no such option")


def serving(precision: str, setting: str, options: Mapping[str, Any]) -> Serving:
    """What the options ask of a server; None: its default.

    Raises:
        InputError: one of them is not allowed.
    """
    from sprfast.deploy.triton_server.repository import Serving

    given = {name: value for name, value in options.items() if value is not None}
    if "queue_timeout" in given:
        given["queue_timeout"] = console.seconds(given["queue_timeout"])
    return Serving(precision=precision, setting=setting, **given)  # type: ignore[arg-type]  # it checks them


def repository(model: Path, output: Path, how: Serving) -> dict[str, Any]:
    """Write a repository for Triton Inference Server, and say what is in it."""
    from sprfast.deploy.triton_server import repository as triton_repository

    return {"repository": str(output), "models": triton_repository.write(output, model, how), **dataclasses.asdict(how)}


def describe(path: Path, metadata: ExportMetadata) -> dict[str, Any]:
    """Everything that an export holds but the network itself."""
    document = metadata.to_json() | metadata.scoring_mode.summary()
    del document["probe"]["error_map"]
    return {"export": str(path), **document}


def table(summary: dict[str, Any]) -> Table:
    """The description without the certificates' details, and what they compared."""
    shown = {name: value for name, value in summary.items() if name != "certificates"}
    for certificate in summary["certificates"]:
        rows = {row["quantity"]: row["value"] for row in certificate.get("rows", [])}
        shown |= {f"certificate.{name}": value for name, value in certificate.items() if name != "rows"}
        shown |= {f"certificate.{name}": value for name, value in rows.items()}
    return console.fields_table(shown)


def _size(text: str | None) -> tuple[int, int] | None:
    """N or HEIGHTxWIDTH."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and (width or height).isdecimal()):
        raise InputError(f"--size {text!r}: write N or HEIGHTxWIDTH in pixels, for example 192 or 192x256")
    return int(height), int(width or height)
