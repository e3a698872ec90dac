"""The command `info`, and how model files and exports are described."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sprfast.cli import console
from sprfast.cli.options import Json, ModelOrExport

if TYPE_CHECKING:
    from sprfast.formats.export_metadata import ExportMetadata
    from sprfast.formats.model import Model


def info(model: ModelOrExport, json_: Json = False) -> None:
    """What a model file or an export holds, after checking every hash in it."""
    from sprfast.formats import export as export_file

    if export_file.kind(model) == "model":
        from sprfast.formats import model as model_file

        summary = describe(model_file.load(model), model)
        console.emit(summary, json_)
    else:
        summary = describe_export(model, export_file.read(model).metadata)
        console.emit(summary, json_, lambda: export_table(summary))


def describe(model: Model, path: Path) -> dict[str, Any]:
    """Everything a model file holds but the weights."""
    from sprfast.formats import trained_on

    return {
        "model": str(path),
        "sha256": model.sha256,
        "parameters": sum(weight.numel() for weight in model.weights.values()),
        "network": model.network.to_json(),
        "noise_seed": model.noise_seed,
        "preprocessing": model.preprocessing.to_json(),
        **model.scoring_mode.summary(),
        "settings": {name: mode.summary() for name, mode in model.scoring_modes.items()},
        "provenance": trained_on.summary(model.provenance),
        "certificates": list(model.certificates),
    }


def describe_export(path: Path, metadata: ExportMetadata) -> dict[str, Any]:
    """Everything that an export holds but the network itself."""
    from sprfast.formats import trained_on

    document = trained_on.summary(metadata.to_json() | metadata.scoring_mode.summary())
    del document["probe"]["error_map"]
    return {"export": str(path), **document}


def export_table(summary: dict[str, Any]) -> Table:
    """The description of an export without the certificates' details, and what they compared."""
    shown = {name: value for name, value in summary.items() if name != "certificates"}
    for certificate in summary["certificates"]:
        rows = {row["quantity"]: row["value"] for row in certificate.get("rows", [])}
        shown |= {f"certificate.{name}": value for name, value in certificate.items() if name != "rows"}
        shown |= {f"certificate.{name}": value for name, value in rows.items()}
    return console.fields_table(shown)
