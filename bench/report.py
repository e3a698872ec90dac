"""A bench report as a file and as a table.

A report is what `cases.run` returns: plain JSON values, `schema_version` first. For each candidate
it has `status` ("measured", "failed" where its maps are not the definition's, "not measured" where
the run was interrupted before), the times of building and of the first calls, `parity`, and for
each scenario the figures or null.
"""

from __future__ import annotations

import json
import os
from typing import Any

from rich import box
from rich.table import Table

from sprfast import files


def write(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report as JSON.

    Raises:
        InputError: the file cannot be written; an old file stays as it was.
    """
    files.write_bytes(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def table(report: dict[str, Any]) -> Table:
    """The report for a terminal, one line a candidate; fits 80 columns."""
    given, baseline = report["input"], report["baseline"]
    schedule = report["model"]["schedule"]["levels"]
    unfinished = "" if report["complete"] else "  INTERRUPTED"
    result = Table(
        title=f"{given['height']}x{given['width']}, {sum(level['draws'] for level in schedule)} draws, {report['device']}{unfinished}",
        caption="\n".join(_notes(report)),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    result.add_column("candidate", no_wrap=True)
    for heading in ("Offline\nimages/s", f"x {baseline}\n(min-max)", "Single\np50 ms", "Stream\np90 ms", "\np99 ms", "relative\nerror"):
        result.add_column(heading, justify="right", no_wrap=True)
    for name, entry in report["candidates"].items():
        result.add_row(name, *_offline(entry, baseline), *_single_stream(entry), _error(entry))
    return result


def _offline(entry: dict[str, Any], baseline: str) -> tuple[str, str]:
    figures = entry["offline"]
    if figures is None:
        return ("failed" if entry["status"] == "failed" else "-"), "-"
    ratio = figures[f"ratio_to_{baseline}"]
    relative = "-" if ratio is None else f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
    return f"{figures['images_per_s']:.4g}", relative


def _single_stream(entry: dict[str, Any]) -> tuple[str, str, str]:
    figures = entry["single_stream"]
    if figures is None:
        return "-", "-", "-"
    return f"{figures['p50_ms']:.4g}", f"{figures['p90_ms']:.4g}", f"{figures['p99_ms']:.4g}"


def _error(entry: dict[str, Any]) -> str:
    if entry["parity"] is None:
        return "-"
    errors = [check[name][norm] for check in entry["parity"].values() for name in ("error_map", "anomaly_map") for norm in check[name]]
    return "not finite" if None in errors else f"{max(errors):.1e}"


def _notes(report: dict[str, Any]) -> list[str]:
    machine, entries = report["environment"], report["candidates"]
    device = machine["devices"][report["device"]]["name"]
    notes = [f"{device}, {machine['torch_threads']} threads, load {machine['load_average']} at the start"]
    notes.append(f"images: {report['input']['images']}")
    for name, entry in entries.items():
        if entry["status"] == "failed":
            notes.append(f"{name}: its maps are not the definition's (tolerance {entry['tolerance']:g}), so it has no speed")
        if entry["first_batch_s"] is not None:
            times = " / ".join(f"{entry[key]:.3g}" for key in ("build_s", "first_image_s", "first_batch_s"))
            notes.append(f"{name}: build / first image / first batch {times} s")
    offline = [entry["offline"] for entry in entries.values() if entry["offline"]]
    if offline:
        notes.append(f"Offline: median of {offline[0]['queries']} queries of {offline[0]['samples_per_query']} images")
    single_stream = [entry["single_stream"] for entry in entries.values() if entry["single_stream"]]
    if single_stream:
        notes.append(f"SingleStream: {single_stream[0]['note']}")
    return [*notes, report["note"]]
