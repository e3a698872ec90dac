"""A bench report as a file and as a table.

A report is what `cases.run` returns: plain JSON values, `schema_version` first. For each candidate
it has `status` ("measured", "failed" where its maps are not the definition's, "unavailable" with the
reason, "not measured" where the run was interrupted before), the times of building and of the first calls, `parity`, and for
each scenario the figures or null.
"""

from __future__ import annotations

import json
import os
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from sprfast import files


def write(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report as JSON.

    Raises:
        InputError: the file cannot be written; an old file stays as it was.
    """
    files.write_bytes(path, (json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def table(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal, in tables of one line a candidate; fits 80 columns."""
    return Group(_streams(report), _by_the_clock(report), *_notes(report))


def failures(report: dict[str, Any]) -> list[str]:
    """One sentence for each candidate with wrong maps or a failed audit."""
    found = []
    for name, entry in report["candidates"].items():
        if entry["status"] == "failed":
            found.append(f"{name}: its maps are not the definition's (tolerance {entry['tolerance']:g}), so it has no speed")
        failed = [audit for audit, result in (entry["audits"] or {}).items() if result and not result["passed"]]
        found += [f"{name}: FAILED the audit {audit.replace('_', ' ')}" for audit in failed]
    return found


def _streams(report: dict[str, Any]) -> Table:
    given, baseline = report["input"], report["baseline"]
    schedule = report["model"]["schedule"]["levels"]
    unfinished = "" if report["complete"] else "  INTERRUPTED"
    title = f"{given['height']}x{given['width']}, {sum(level['draws'] for level in schedule)} draws, {report['device']}{unfinished}"
    headings = ("Offline\nimages/s", f"x {baseline}\n(min-max)", "Single\np50 ms", "Stream\np90 ms", "\np99 ms", "relative\nerror")
    result = _empty(headings, title)
    for name, entry in report["candidates"].items():
        result.add_row(name, *_offline(entry, baseline), *_single_stream(entry), _error(entry))
    return result


def _by_the_clock(report: dict[str, Any]) -> Table:
    headings = ("MultiStr.\np99 ms", "Server\nqueries/s", "Line\nlate", "\ndropped", "\nframes", "\np99 ms", "\njitter ms")
    result = _empty(headings, None)
    for name, entry in report["candidates"].items():
        multi_stream, server, line = (entry[key] for key in ("multi_stream", "server", "line"))
        cells = [f"{multi_stream['p99_ms']:.4g}" if multi_stream else "-"]
        cells.append("-" if server is None else "none" if server["queries_per_s"] is None else f"{server['queries_per_s']:.4g}")
        cells += [str(line[key]) for key in ("late", "dropped", "frames")] if line else ["-"] * 3
        cells += [f"{line[key]:.4g}" for key in ("p99_ms", "jitter_ms")] if line else ["-"] * 2
        result.add_row(name, *cells)
    return result


def _empty(headings: tuple[str, ...], title: str | None) -> Table:
    result = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("candidate", no_wrap=True)
    for heading in headings:
        result.add_column(heading, justify="right", no_wrap=True)
    return result


def _offline(entry: dict[str, Any], baseline: str) -> tuple[str, str]:
    figures = entry["offline"]
    if figures is None:
        return (entry["status"] if entry["status"] in ("failed", "unavailable") else "-"), "-"
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
    notes += failures(report)
    for name, entry in entries.items():
        if entry["reason"]:
            notes.append(f"{name}: {entry['status']}, {entry['reason']}")
        if entry["first_batch_s"] is not None:
            times = " / ".join(f"{entry[key]:.3g}" for key in ("build_s", "first_image_s", "first_batch_s"))
            notes.append(f"{name}: build / first image / first batch {times} s")
    offline = [entry["offline"] for entry in entries.values() if entry["offline"]]
    if offline:
        notes.append(f"Offline: median of {offline[0]['queries']} queries of {offline[0]['samples_per_query']} images")
    single_stream = [entry["single_stream"] for entry in entries.values() if entry["single_stream"]]
    if single_stream:
        notes.append(f"SingleStream: {single_stream[0]['note']}")
    multi_stream = [entry["multi_stream"] for entry in entries.values() if entry["multi_stream"]]
    if multi_stream:
        notes.append(f"MultiStream, 8 images a query: {multi_stream[0]['note']}")
    lines = [entry["line"] for entry in entries.values() if entry["line"]]
    if lines:
        notes.append(f"Line: a frame every {lines[0]['period_ms']:.4g} ms, late after {lines[0]['deadline_ms']:.4g} ms from its trigger")
    servers = [entry["server"] for entry in entries.values() if entry["server"]]
    if servers:
        notes.append(f"Server: highest Poisson rate with p99 within {servers[0]['bound_ms']:.4g} ms; {servers[0]['note']}")
    elif lines:
        notes.append("Server: not measured, a search takes longer than the time for a scenario")
    return [*notes, report["note"]]
