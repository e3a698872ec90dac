"""A bench report, as `report_file` has it, as tables in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sprfast.bench.core import accuracy, footprint, hardware, recommend, tables
from sprfast.system.terminal import shown

_CLOCK = (
    *("MultiStr.\np99 ms", "Server\nqueries/s"),
    *("Line\nlate", "\ndropped", "\nframes", "\np99 ms", "\njitter ms"),
)
_HARDWARE = ("build\ns", "first\nimage s", "\nbatch s", "% of\nmatmul", "\ncopy", "memory\nMiB", "energy\nJ/image")
_MEMORY = ("images\na call", "built\nMiB", "peak of\nbuilding", "peak of\ncalls")
_SETUP = ("build_s", "first_image_s", "first_batch_s")


def table(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal, in tables of one line a candidate; fits 80 columns."""
    parts: list[RenderableType] = [
        _streams(report),
        _filled(report, _CLOCK, _clock_cells),
        _filled(report, _HARDWARE, _hardware_cells),
    ]
    if any(entry["memory"] for entry in report["candidates"].values()):
        parts.append(_filled(report, _MEMORY, _memory_cells))
    if report["accuracy"]:
        parts.append(accuracy.table(report))
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
    for row in report["accuracy"] or ():
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
    """The largest error of all results of a candidate's checks; None if one is not finite."""
    results = [result for check in parity.values() for name, result in check.items() if name != "passed"]
    errors = [error for result in results for error in result.values()]
    return None if None in errors else max(errors)


def _streams(report: dict[str, Any]) -> Table:
    given, baseline = report["input"], report["baseline"]
    draws = sum(level["draws"] for level in report["model"]["schedule"]["levels"])
    unfinished = "" if report["complete"] else "  INTERRUPTED"
    title = f"{given['height']}x{given['width']}, {draws} draws, {report['device']}{unfinished}"
    speed = ("Offline\nimages/s", f"x {baseline}\n(min-max)")
    latency = ("Single\np50 ms", "Stream\np90 ms", "\np99 ms")

    def cells(entry: dict[str, Any]) -> list[str]:
        single = entry["single_stream"] or {}
        percentiles = [tables.cell(single.get(f"p{q}_ms"), ".4g") for q in (50, 90, 99)]
        return [*_offline(entry, baseline), *percentiles, _error(entry)]

    return _filled(report, (*speed, *latency, "relative\nerror"), cells, title)


def _clock_cells(entry: dict[str, Any]) -> list[str]:
    multi_stream, server, line = (entry[key] or {} for key in ("multi_stream", "server", "line"))
    nothing = "none" if server else "-"  # of the rates that were tried, or not measured
    rate = server.get("queries_per_s")
    return [
        tables.cell(multi_stream.get("p99_ms"), ".4g"),
        nothing if rate is None else f"{rate:.4g}",
        *(str(line.get(key, "-")) for key in ("late", "dropped", "frames")),
        *(tables.cell(line.get(key), ".4g") for key in ("p99_ms", "jitter_ms")),
    ]


def _hardware_cells(entry: dict[str, Any]) -> list[str]:
    found = entry["hardware"] or {}
    figures = [entry[key] for key in _SETUP] + [found.get(key) for key in ("percent_of_matmul", "percent_of_copy")]
    figures += [(found.get("peak_memory_mib") or {}).get("allocated"), found.get("joules_per_image")]
    return [tables.cell(value, ".3g") for value in figures]


def _memory_cells(entry: dict[str, Any]) -> list[str]:
    found = entry["memory"] or {}
    return [str(found.get("images", "-")), *(tables.cell(found.get(key), ".1f") for key in footprint.FIGURES)]


def _filled(
    report: dict[str, Any],
    headings: Sequence[str],
    cells: Callable[[dict[str, Any]], list[str]],
    title: str | None = None,
) -> Table:
    """A row a candidate, those of a precision together below its name where there are several."""
    result = tables.empty(headings, title)
    groups = list(tables.by_precision(report["candidates"]))
    for precision, entries in groups:
        if len(groups) > 1:
            result.add_section()
            result.add_row(Text(f"in {precision}", style="bold"))
        for name, entry in entries.items():
            style = {"failed": "strike", "unavailable": "dim"}.get(entry["status"], "")
            result.add_row(Text(shown(name), style=style), *cells(entry))
    return result


def precisions(report: dict[str, Any]) -> list[str]:
    """A sentence for each candidate that did not run in the precision that was asked for."""
    return [
        f"{name}: asked for {entry['asked_precision']}, runs in {entry['precision']} on this machine"
        for name, entry in report["candidates"].items()
        if entry["precision"] != entry["asked_precision"]
    ]


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


def _error(entry: dict[str, Any]) -> str:
    if entry["parity"] is None:
        return "-"
    error = largest_error(entry["parity"])
    return "not finite" if error is None else f"{error:.1e}"


def _notes(report: dict[str, Any]) -> list[str]:
    machine, entries = report["environment"], report["candidates"].items()
    device = machine["devices"][report["device"]]["name"]
    notes = [
        f"{device}, {machine['torch_threads']} threads, load {machine['load_average']} at the start",
        f"timed: {report['timed']}",
        f"images: {report['input']['images']}",
        f"errors: relative to {report['truth']}",
        *failures(report),
    ]
    notes += [f"{name}: {entry['status']}, {entry['reason']}" for name, entry in entries if entry["reason"]]
    notes += precisions(report)
    notes += [
        f"{row['name']}: accuracy not known, {row['reason']}" for row in report["accuracy"] or () if row["reason"]
    ]
    notes += [
        f"{name}: memory not known, {entry['memory']['reason']}"
        for name, entry in entries
        if entry["memory"] and entry["memory"]["reason"]
    ]
    shares = [(entry["hardware"] or {}).get(key) for _, entry in entries for key in hardware.SHARES]
    if any(share is not None and share > 100 for share in shares):
        notes.append(
            "% of matmul and copy: above 100 where convolutions multiply less than direct ones, as Winograd's do, or "
            "maps stay in a cache"
        )
    return [*notes, *_scenario_notes(report), report["note"]]


def _scenario_notes(report: dict[str, Any]) -> Iterator[str]:
    """By the figures of the first candidate that has them."""
    offline, single_stream, multi_stream, line, server = (
        next((entry[key] for entry in report["candidates"].values() if entry[key]), None)
        for key in ("offline", "single_stream", "multi_stream", "line", "server")
    )
    if offline:
        yield f"Offline: median of {offline['queries']} queries of {offline['samples_per_query']} images"
    if single_stream:
        yield f"SingleStream: {single_stream['note']}"
    if multi_stream:
        yield f"MultiStream, 8 images a query: {multi_stream['note']}"
    if line:
        period, deadline = (f"{line[key]:.4g} ms" for key in ("period_ms", "deadline_ms"))
        yield f"Line: a frame every {period}, late after {deadline} from its trigger"
        if server:
            yield f"Server: highest Poisson rate with p99 within {server['bound_ms']:.4g} ms; {server['note']}"
        else:
            yield "Server: not measured, a search takes longer than the time for a scenario"
