"""The tables of `page`, made of the values of a bench report: cells are text, not HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sprfast.bench.core import exports, footprint, recommend, report, scenarios
from sprfast.bench.core.sweeps import plural
from sprfast.bench.page.plots import number, shortest

Entries = Mapping[str, dict[str, Any]]  # of the candidates, by name

NONE = "–"
FAILED = "FAILED"
STREAMS = ((scenarios.SINGLE_STREAM.name, "single_stream"), (scenarios.MULTI_STREAM.name, "multi_stream"))
PASSES = {"one_image": "one image", "batch": "batch"}
DEFINITIONS = (
    ("SingleStream", "one image a query; the next query comes when the last has been answered"),
    (
        "MultiStream",
        f"{scenarios.MULTI_STREAM_SAMPLES} images a query; the next query comes when the last has been answered",
    ),
    ("Offline", "all images in one query"),
    (
        "Server",
        "queries of one image at random (Poisson) times: the highest rate at which 99 % are answered within the bound",
    ),
    (
        "Line",
        "a frame every period, whatever the system does; a frame is late after its deadline, dropped where too many "
        "wait",
    ),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str
    cells: Sequence[str] = ()
    kind: str = ""  # "ours", "failed" or "unavailable": how it looks
    text: str = ""  # in place of the cells


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows below headings; the first column holds their names."""

    columns: Sequence[str]
    rows: Sequence[Row]
    groups: Sequence[tuple[str, int]] = ()  # a heading above the next columns after the first, and how many
    plain: bool = False  # of texts: left-aligned
    alarms: Sequence[str] = (FAILED,)  # cells in red


def measured(entries: Entries, key: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, entry and figures `key` of the candidates that have them; one with wrong maps has none,
    whatever the report holds.
    """
    for name, entry in entries.items():
        if entry["status"] == "measured" and entry[key]:
            yield name, entry, entry[key]


def summary(document: dict[str, Any]) -> Table:
    """One line a candidate: speed, latency, error, audits."""
    baseline = document["baseline"]
    speeds = (
        "images/s",
        f"× {baseline}\n(min–max)",
        "p50",
        "p90",
        "p99",
        "p99, ms",
        "queries/s",
        "late / dropped\n/ frames",
    )
    groups = (("Offline", 2), ("SingleStream, ms", 3), ("MultiStream", 1), ("Server", 1), ("Line", 1), ("", 2))
    columns = ("candidate", *speeds, "largest\nrelative\nerror", "audits")
    return Table(
        columns, [_summary_row(name, entry, baseline) for name, entry in document["candidates"].items()], groups
    )


def _summary_row(name: str, entry: dict[str, Any], baseline: str) -> Row:
    if entry["status"] == "failed":
        error = f"largest relative error {_largest(entry)}, tolerance {entry['tolerance']:g}"
        return Row(name, kind="failed", text=f"struck out: its maps are not the definition's ({error})")
    if entry["status"] != "measured":
        reason = f": {entry['reason']}" if entry["reason"] else ""
        return Row(name, kind="unavailable", text=f"{entry['status']}{reason}")
    offline, single, multi, server, line = (
        entry[key] for key in ("offline", "single_stream", "multi_stream", "server", "line")
    )
    ratio = offline[f"ratio_to_{baseline}"] if offline else None
    cells = [number(offline["images_per_s"]) if offline else NONE]
    cells.append("{} ({}–{})".format(*(_ratio(ratio[key]) for key in ("median", "min", "max"))) if ratio else NONE)
    cells += [number(single[f"p{q}_ms"]) if single else NONE for q in (50, 90, 99)]
    cells += [number(multi["p99_ms"]) if multi else NONE, _rate(server)]
    cells.append(" / ".join(number(line[key]) for key in ("late", "dropped", "frames")) if line else NONE)
    return Row(name, [*cells, _largest(entry), _audits(entry)], _kind(entry))


def notes(document: dict[str, Any]) -> list[str]:
    """What the figures of the summary are, one sentence a scenario."""
    found = []
    for title, key in (*STREAMS, ("Offline", "offline"), ("Server", "server")):
        texts = {name: _note(key, figures) for name, _, figures in measured(document["candidates"], key)}
        if len(set(texts.values())) == 1:
            found.append(f"{title}: {next(iter(texts.values()))}")
        else:
            found += [f"{title}, {name}: {text}" for name, text in texts.items()]
    if any(measured(document["candidates"], "offline")):
        found.append(f"× {document['baseline']}: median of the ratios within each round, and their range")
    return found


def setting_notes(settings: dict[str, Any] | None) -> list[str]:
    """The points that could not be timed with the reason, and what the sweeps are."""
    return [*map(recommend.left_out, settings["failed"]), settings["note"]] if settings else []


def parity(entries: Entries) -> Table | None:
    """Errors of each result against the definition."""
    checks = [check for entry in entries.values() for check in (entry["parity"] or {}).items()]
    pairs = list(dict.fromkeys((key, name) for key, results in checks for name in results if name != "passed"))
    if not pairs:
        return None
    rows = []
    for name, entry in entries.items():
        if not entry["parity"]:
            rows.append(Row(name, kind="unavailable", text=f"{entry['status']}, not compared"))
            continue
        errors = [entry["parity"][key][each][kind] for key, each in pairs for kind in ("relative_rms", "relative_max")]
        passed = all(check["passed"] for check in entry["parity"].values())
        cells = [_error(error) for error in errors] + [f"{entry['tolerance']:g}", "passed" if passed else FAILED]
        rows.append(Row(name, cells, "failed" if entry["status"] == "failed" else _kind(entry)))
    groups = [(f"{PASSES[key]}: {name.replace('_', ' ')}", 2) for key, name in pairs]
    return Table(("candidate", *("rms", "max") * len(pairs), "tolerance", "result"), rows, [*groups, ("", 2)])


def audits(entries: Entries) -> Table | None:
    """Whether what was timed was the work."""
    rows = []
    for name, entry, found in measured(entries, "audits"):
        outputs, repeated = found["outputs"], found["repeated_image"]
        cells = [str(outputs["compared"]), _verdict(outputs["passed"])]
        if repeated:
            quartiles = (f"{repeated['ratio'][key]:.3f}" for key in ("p25", "p50", "p75"))
            cells += [*quartiles, f"{repeated['allowed']:.2f}", str(repeated["rounds"]), _verdict(repeated["passed"])]
        rows.append(Row(name, cells if repeated else cells + [NONE] * 6, _kind(entry)))
    columns = ("candidate", "compared", "equal", "p25", "p50", "p75", "allowed p25", "rounds", "result")
    groups = (("timed outputs again, untimed", 2), ("time of distinct images / one repeated", 6))
    return Table(columns, rows, groups) if rows else None


def hardware(entries: Entries) -> tuple[Table, list[str]] | None:
    """Shares of the ceilings, memory and energy; and why energy is not known."""
    rows, reasons = [], []
    for name, entry, used in measured(entries, "hardware"):
        memory = used["peak_memory_mib"] or {"allocated": None, "reserved": None}
        figures = (
            used["percent_of_matmul"],
            used["percent_of_copy"],
            memory["allocated"],
            memory["reserved"],
            used["joules_per_image"],
        )
        rows.append(Row(name, [entry["precision"], *(optional(value, 3) for value in figures)], _kind(entry)))
        reasons += [used["energy_reason"]] if used["energy_reason"] else []
    columns = ("candidate", "precision", "% of matmul", "% of copy", "allocated", "reserved", "joules an image")
    groups = (("", 1), ("Offline against the ceilings", 2), ("peak memory, MiB", 2), ("", 1))
    return (Table(columns, rows, groups), list(dict.fromkeys(reasons))) if rows else None


def memory(entries: Entries) -> Table | None:
    """What each candidate holds, in a process of its own."""
    rows = []
    for name, entry, found in measured(entries, "memory"):
        figures = [optional(found[key]) for key in footprint.FIGURES]
        text = f"not known: {found['reason']}" if found["reason"] else ""
        rows.append(Row(name, [str(found["images"]), *figures], _kind(entry), text))
    columns = ("candidate", "images a call", "built", "peak of building", "peak of calls")
    return Table(columns, rows, (("", 1), ("MiB above the loaded model", 3))) if rows else None


def exported(rows: Sequence[dict[str, Any]] | None) -> Table | None:
    """What each export costs in accuracy."""
    shown = [Row(row["name"], [cell or NONE for cell in exports.cells(row)]) for row in rows or ()]
    return Table(("candidate", *exports.HEADINGS), shown) if shown else None


def server(entries: Entries) -> Table | None:
    """The search's outcome a candidate."""
    rows = [
        Row(
            name,
            [_rate(found), shortest(found["bound_ms"]), str(found["most_in_a_call"]), str(len(found["trials"]))],
            _kind(entry),
        )
        for name, entry, found in measured(entries, "server")
    ]
    columns = ("candidate", "queries/s", "bound of p99, ms", "most in a call", "trials")
    return Table(columns, rows) if rows else None


def trials(entries: Entries) -> Table:
    """Every trial of every search."""
    rows = [
        Row(
            name,
            [
                *(number(trial[key]) for key in ("queries_per_s", "queries", "p99_ms")),
                "valid" if trial["valid"] else "too slow",
            ],
        )
        for name, _, found in measured(entries, "server")
        for trial in found["trials"]
    ]
    return Table(("candidate", "queries/s", "queries", "p99, ms", "result"), rows)


def line(entries: Entries) -> Table | None:
    """Frames at a fixed period."""
    keys = (
        "period_ms",
        "deadline_ms",
        "frames",
        "late",
        "dropped",
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "max_ms",
        "jitter_ms",
    )
    rows = [
        Row(name, [number(found[key]) for key in keys], _kind(entry))
        for name, entry, found in measured(entries, "line")
    ]
    columns = ("candidate", "period", "deadline", "frames", "late", "dropped", "p50", "p90", "p99", "max", "p99 − p50")
    return Table(columns, rows, (("ms", 2), ("number", 3), ("latency from the trigger, ms", 5))) if rows else None


def early_stopping(entries: Entries) -> Table | None:
    """Percentiles as they are and as upper bounds."""
    rows = []
    for name, entry in entries.items():
        found = [entry[key] for _, key in STREAMS] if entry["status"] == "measured" else []
        if any(found):
            rows.append(Row(name, [cell for figures in found for cell in _bounds(figures)], _kind(entry)))
    columns = ("candidate", *("queries", "p90", "bound", "p99", "bound") * len(STREAMS))
    return Table(columns, rows, [(f"{title}, ms", 5) for title, _ in STREAMS]) if rows else None


def _bounds(figures: dict[str, Any] | None) -> list[str]:
    if not figures:
        return [NONE] * 5
    keys = ("p90_ms", "p90_early_stopping_ms", "p99_ms", "p99_early_stopping_ms")
    return [str(figures["queries"]), *(optional(figures[key]) for key in keys)]


def points(settings: dict[str, Any]) -> Table:
    """Every setting that was measured."""
    keys, spread = ("batch", "draws", "rounds", "p50_ms", "p99_ms"), ("median", "min", "max")
    rows = [
        Row(
            point["candidate"],
            [number(value) for value in (*map(point.get, keys), *map(point["images_per_s"].get, spread))],
        )
        for point in settings["points"]
    ]
    columns = ("candidate", "images a call", *keys[1:3], "p50", "p99", *spread)
    return Table(columns, rows, (("", 3), ("a call, ms", 2), ("images/s", 3)))


def setup(entries: Entries) -> Table | None:
    """What each candidate takes before it is warm."""
    keys = ("build_s", "first_image_s", "first_batch_s")
    ready = {name: entry for name, entry in entries.items() if entry["status"] == "measured"}
    rows = [
        Row(name, [entry["precision"], *(number(entry[key], 3) for key in keys)], _kind(entry))
        for name, entry in ready.items()
    ]
    return (
        Table(("candidate", "precision", "build", "first image", "first batch"), rows, (("", 1), ("seconds", 3)))
        if rows
        else None
    )


def facts(document: Mapping[str, Any]) -> Table:
    """A JSON object as two columns; the names of nested values are joined by dots."""
    return Table((), [Row(name, [value]) for name, value in _flat(document, "")], plain=True)


def optional(value: float | None, digits: int = 4) -> str:
    """A number, or a dash for None."""
    return NONE if value is None else number(value, digits)


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, NONE if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _note(key: str, figures: dict[str, Any]) -> str:
    if key == "offline":
        return f"median of {plural(figures['queries'], 'round')} of {plural(figures['samples_per_query'], 'image')}"
    return str(figures["note"])


def _kind(entry: dict[str, Any]) -> str:
    return "ours" if entry["ours"] else ""


def _largest(entry: dict[str, Any]) -> str:
    return _error(report.largest_error(entry["parity"])) if entry["parity"] else NONE


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _audits(entry: dict[str, Any]) -> str:
    found = [result for result in (entry["audits"] or {}).values() if result]
    return _verdict(all(result["passed"] for result in found)) if found else NONE


def _verdict(passed: bool) -> str:
    return "ok" if passed else FAILED


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _rate(found: dict[str, Any] | None) -> str:
    if found is None:
        return NONE
    return "none" if found["queries_per_s"] is None else number(found["queries_per_s"])
