"""The command `export`, and what it and `info` say of an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sprfast import console, data, model_file
from sprfast.contract import Contract
from sprfast.errors import InputError

if TYPE_CHECKING:
    from sprfast.export import Request


def request(to: str, size: str | None, batch: int | None, precision: str, quantize: str | None) -> Request:
    """What the options ask for.

    Raises:
        InputError: one of them is not allowed.
    """
    from sprfast.export import Request

    return Request(to, _size(size), batch, precision, quantize)  # type: ignore[arg-type]  # it checks them


def export(model: Path, output: Path, asked: Request, images: Path | None, setting: str) -> dict[str, Any]:
    """Export a model with one of its settings, and describe the file."""
    from sprfast import export as exporting

    paths = data.image_files([images]) if images else []
    return describe(output, exporting.export(model_file.load(model).using(setting), output, asked, paths))


def describe(path: Path, contract: Contract) -> dict[str, Any]:
    """Everything that an export holds but the network itself."""
    document = contract.to_json() | contract.setting.summary()
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
