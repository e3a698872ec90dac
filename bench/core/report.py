"""A bench report, as `report_file` has it, as tables in a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sprfast.bench.core import drivers, exports, footprint, recommend

_SCENARIOS = ("offline", "single_stream", "multi_stream", "line", "server")  # in the order of the notes
_SETUP = ("build_s", "first_image_s", "first_batch_s")


def table(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal, in tables of one line a candidate; fits 80 columns."""
    parts: list[RenderableType] = [_streams(report), _by_the_clock(report), _hardware(report)]
    if any(entry["memory"] for entry in report["candidates"].values()):
        parts.append(_memory(report))
    if report["exports"]:
        parts.append(exports.table(report["exports"]))
    return Group(*parts, recommend.table(report), *_notes(report))


def failures(report: dict[str, Any]) -> list[str]:
    """One sentence for each candidate with wrong maps or a failed audit, and for a period that is
    not held.
    """
    found = []
    for name, entry in report["candidates"].items():
        if entry["status"] == "failed":
            found.append(
                f"{name}: its maps are not the definition's (tolerance {entry['tolerance']:g}), so it has no speed"
            )
        failed = [audit for audit, result in (entry["audits"] or {}).items() if result and not result["passed"]]
        found += [f"{name}: FAILED the audit {audit.replace('_', ' ')}" for audit in failed]
    for row in report["exports"] or ():
        if not row["passed"]:
            found.append(f"{row['name']}: does not score like the definition, see `sprfast parity --export`")
    chosen = report["recommendation"]
    if chosen and chosen["candidate"] is None:
        found.append(chosen["reason"])
    if chosen and chosen["line"] and chosen["line"]["late"] + chosen["line"]["dropped"]:
        found.append(
            f"the recommended setting did NOT keep a period of {chosen['period_ms']:.4g} ms on the line's clock"
        )
    return found


def largest_error(parity: dict[str, Any]) -> float | None:
    """Of all results of a candidate's checks; None if one is not finite."""
    results = [result for check in parity.values() for name, result in check.items() if name != "passed"]
    errors = [error for result in results for error in result.values()]
    return None if None in errors else max(errors)


def _streams(report: dict[str, Any]) -> Table:
    given, baseline = report["input"], report["baseline"]
    schedule = report["model"]["schedule"]["levels"]
    unfinished = "" if report["complete"] else "  INTERRUPTED"
    title = (
        f"{given['height']}x{given['width']}, {sum(level['draws'] for level in schedule)} draws, "
        f"{report['device']}{unfinished}"
    )
    headings = (
        "Offline\nimages/s",
        f"x {baseline}\n(min-max)",
        "Single\np50 ms",
        "Stream\np90 ms",
        "\np99 ms",
        "relative\nerror",
    )
    result = _empty(headings, title)
    for name, entry in report["candidates"].items():
        result.add_row(_name(name, entry), *_offline(entry, baseline), *_single_stream(entry), _error(entry))
    return result


def _by_the_clock(report: dict[str, Any]) -> Table:
    headings = (
        "MultiStr.\np99 ms",
        "Server\nqueries/s",
        "Line\nlate",
        "\ndropped",
        "\nframes",
        "\np99 ms",
        "\njitter ms",
    )
    result = _empty(headings, None)
    for name, entry in report["candidates"].items():
        multi_stream, server, line = (entry[key] for key in ("multi_stream", "server", "line"))
        cells = [f"{multi_stream['p99_ms']:.4g}" if multi_stream else "-"]
        cells.append(
            "-" if server is None else "none" if server["queries_per_s"] is None else f"{server['queries_per_s']:.4g}"
        )
        cells += [str(line[key]) for key in ("late", "dropped", "frames")] if line else ["-"] * 3
        cells += [f"{line[key]:.4g}" for key in ("p99_ms", "jitter_ms")] if line else ["-"] * 2
        result.add_row(_name(name, entry), *cells)
    return result


def _hardware(report: dict[str, Any]) -> Table:
    headings = ("build\ns", "first\nimage s", "\nbatch s", "% of\nmatmul", "\ncopy", "memory\nMiB", "energy\nJ/image")
    result = _empty(headings, None)
    for name, entry in report["candidates"].items():
        found = entry["hardware"] or {}
        figures = [entry[key] for key in _SETUP] + [found.get(key) for key in ("percent_of_matmul", "percent_of_copy")]
        figures += [(found.get("peak_memory_mib") or {}).get("allocated"), found.get("joules_per_image")]
        result.add_row(_name(name, entry), *("-" if value is None else f"{value:.3g}" for value in figures))
    return result


def _memory(report: dict[str, Any]) -> Table:
    result = _empty(("images\na call", "built\nMiB", "peak of\nbuilding", "peak of\ncalls"), None)
    for name, entry in report["candidates"].items():
        found = entry["memory"] or {}
        figures = (found.get(key) for key in footprint.FIGURES)
        result.add_row(
            _name(name, entry),
            str(found.get("images", "-")),
            *("-" if value is None else f"{value:.1f}" for value in figures),
        )
    return result


def _name(name: str, entry: dict[str, Any]) -> Text:
    return Text(name, style={"failed": "strike", "unavailable": "dim"}.get(entry["status"], ""))


def _empty(headings: tuple[str, ...], title: str | None) -> Table:
    result = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("candidate", no_wrap=True)
    for heading in headings:
        result.add_column(heading, justify="right", no_wrap=True)
    return result


def _offline(entry: dict[str, Any], baseline: str) -> tuple[str, str]:
    figures = entry["offline"]
    if figures is None:
        return "struck out" if entry["status"] == "failed" else "-", "-"
    ratio = figures[f"ratio_to_{baseline}"]
    relative = "-" if ratio is None else f"{_times(ratio['median'])} ({_times(ratio['min'])}-{_times(ratio['max'])})"
    return f"{figures['images_per_s']:.4g}", relative


def _times(ratio: float) -> str:
    """In four characters up to 99.9, so that the table keeps its width."""
    return f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.1f}"


def _single_stream(entry: dict[str, Any]) -> tuple[str, str, str]:
    figures = entry["single_stream"]
    if figures is None:
        return "-", "-", "-"
    return f"{figures['p50_ms']:.4g}", f"{figures['p90_ms']:.4g}", f"{figures['p99_ms']:.4g}"


def _error(entry: dict[str, Any]) -> str:
    if entry["parity"] is None:
        return "-"
    error = largest_error(entry["parity"])
    return "not finite" if error is None else f"{error:.1e}"


def _notes(report: dict[str, Any]) -> list[str]:
    machine, entries = report["environment"], report["candidates"].values()
    device = machine["devices"][report["device"]]["name"]
    notes = [f"{device}, {machine['torch_threads']} threads, load {machine['load_average']} at the start"]
    notes += [
        f"timed: {report['timed']}",
        f"images: {report['input']['images']}",
        f"errors: relative to {report['truth']}",
    ]
    notes += failures(report)
    notes += [
        f"{name}: {entry['status']}, {entry['reason']}"
        for name, entry in report["candidates"].items()
        if entry["reason"]
    ]
    notes += [
        f"{name}: memory not known, {entry['memory']['reason']}"
        for name, entry in report["candidates"].items()
        if entry["memory"] and entry["memory"]["reason"]
    ]
    first = {key: next((entry[key] for entry in entries if entry[key]), None) for key in drivers.KEYS}
    offline, single_stream, multi_stream, line, server = (first[scenario] for scenario in _SCENARIOS)
    if offline:
        notes.append(f"Offline: median of {offline['queries']} queries of {offline['samples_per_query']} images")
    if single_stream:
        notes.append(f"SingleStream: {single_stream['note']}")
    if multi_stream:
        notes.append(f"MultiStream, 8 images a query: {multi_stream['note']}")
    if line:
        notes.append(
            f"Line: a frame every {line['period_ms']:.4g} ms, late after {line['deadline_ms']:.4g} ms from its trigger"
        )
        notes.append(_server_note(server))
    return [*notes, report["note"]]


def _server_note(server: dict[str, Any] | None) -> str:
    if server is None:
        return "Server: not measured, a search takes longer than the time for a scenario"
    return f"Server: highest Poisson rate with p99 within {server['bound_ms']:.4g} ms; {server['note']}"
