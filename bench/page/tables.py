"""The tables of `page`, made of the values of a bench report: cells are text, not HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sprfast.bench.core import accuracy, footprint, report, scenarios, tables
from sprfast.bench.core.sweeps import plural
from sprfast.bench.page.plots import number, shortest

Entry = dict[str, Any]
Entries = Mapping[str, Entry]  # of the candidates, by name
Groups = Sequence[tuple[str, int]]  # a heading above the next columns after the first, and how many

NONE = "–"
FAILED = "FAILED"
STREAMS = (scenarios.SINGLE_STREAM, scenarios.MULTI_STREAM)
DEFINITIONS = {
    "SingleStream": "one image a query; the next query comes when the last has been answered",
    "MultiStream": f"{scenarios.MULTI_STREAM_SAMPLES} images a query; the next query comes when the last has been "
    "answered",
    "Offline": "all images in one query",
    "Server": "queries of one image at random (Poisson) times: the highest rate at which 99 % are answered within the "
    "bound",
    "Line": "a frame every period, whatever the system does; a frame is late after its deadline, dropped where too "
    "many wait",
}


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One line of a table."""

    name: str
    cells: Sequence[str] = ()
    kind: str = ""  # "ours", "failed", "unavailable" or "precision": how it looks
    text: str = ""  # in place of the cells


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows below headings; the first column holds their names. What has no rows is not shown."""

    columns: Sequence[str]
    rows: Sequence[TableRow]
    groups: Groups = ()
    plain: bool = False  # of texts: left-aligned


def measured(entries: Entries, key: str) -> Iterator[tuple[str, Entry, Any]]:
    """Name, entry and figures `key` of the candidates that have them; one with wrong maps has none,
    whatever the report holds.
    """
    for name, entry in entries.items():
        if entry["status"] == "measured" and entry[key]:
            yield name, entry, entry[key]


def summary(document: dict[str, Any]) -> Table:
    """One line a candidate: speed, latency, error, audits; those of a precision together below its
    name where there are several.
    """
    baseline = document["baseline"]
    ratio, late = f"× {baseline}\n(min–max)", "late / dropped\n/ frames"
    speeds = ("images/s", ratio, "p50", "p90", "p99", "p99, ms", "queries/s", late)
    groups = (("Offline", 2), ("SingleStream, ms", 3), ("MultiStream", 1), ("Server", 1), ("Line", 1), ("", 2))
    rows, by_precision = [], list(tables.by_precision(document["candidates"]))
    for precision, entries in by_precision:
        rows += [TableRow(f"in {precision}", kind="precision")] if len(by_precision) > 1 else []
        rows += [_summary_row(name, entry, baseline) for name, entry in entries.items()]
    return Table(("candidate", *speeds, "largest\nrelative\nerror", "audits"), rows, groups)


def _summary_row(name: str, entry: Entry, baseline: str) -> TableRow:
    if entry["status"] == "failed":
        error = f"largest relative error {_largest(entry)}, tolerance {entry['tolerance']:g}"
        return TableRow(name, kind="failed", text=f"struck out: its maps are not the definition's ({error})")
    if entry["status"] != "measured":
        reason = f": {entry['reason']}" if entry["reason"] else ""
        return TableRow(name, kind="unavailable", text=f"{entry['status']}{reason}")
    offline, single, multi, server, line = (
        entry[key] for key in ("offline", "single_stream", "multi_stream", "server", "line")
    )
    ratio = offline[f"ratio_to_{baseline}"] if offline else None
    cells = [number(offline["images_per_s"]) if offline else NONE]
    cells.append("{} ({}–{})".format(*(_ratio(ratio[key]) for key in ("median", "min", "max"))) if ratio else NONE)
    cells += [number(single[f"p{q}_ms"]) if single else NONE for q in (50, 90, 99)]
    cells += [number(multi["p99_ms"]) if multi else NONE, _rate(server) if server else NONE]
    cells.append(" / ".join(number(line[key]) for key in ("late", "dropped", "frames")) if line else NONE)
    audits = [result["passed"] for result in (entry["audits"] or {}).values() if result]
    return TableRow(name, [*cells, _largest(entry), _verdict(all(audits)) if audits else NONE], _kind(entry))


def notes(document: dict[str, Any]) -> list[str]:
    """What the figures of the summary are, one sentence a scenario."""
    found, entries = [], document["candidates"]
    for title, key in (*((each.name, each.key) for each in scenarios.ALL), ("Server", "server")):
        texts = {name: _note(key, figures) for name, _, figures in measured(entries, key)}
        if len(set(texts.values())) == 1:
            found.append(f"{title}: {next(iter(texts.values()))}")
        else:
            found += [f"{title}, {name}: {text}" for name, text in texts.items()]
    found += report.precisions(document)
    if any(measured(entries, "offline")):
        found.append(f"× {document['baseline']}: median of the ratios within each round, and their range")
    return found


def _note(key: str, figures: dict[str, Any]) -> str:
    if key == "offline":
        return f"median of {plural(figures['queries'], 'round')} of {plural(figures['samples_per_query'], 'image')}"
    return str(figures["note"])


def parity(entries: Entries) -> Table:
    """Errors of each result against the definition."""
    checks = [check for entry in entries.values() for check in (entry["parity"] or {}).items()]
    pairs = list(dict.fromkeys((key, name) for key, results in checks for name in results if name != "passed"))
    rows = []
    for name, entry in entries.items() if pairs else ():
        if not entry["parity"]:
            rows.append(TableRow(name, kind="unavailable", text=f"{entry['status']}, not compared"))
            continue
        errors = [entry["parity"][key][each][kind] for key, each in pairs for kind in ("relative_rms", "relative_max")]
        passed = all(check["passed"] for check in entry["parity"].values())
        cells = [*map(_error, errors), f"{entry['tolerance']:g}", "passed" if passed else FAILED]
        rows.append(TableRow(name, cells, "failed" if entry["status"] == "failed" else _kind(entry)))
    groups = [(f"{key}: {name}".replace("_", " "), 2) for key, name in pairs]
    return Table(("candidate", *("rms", "max") * len(pairs), "tolerance", "result"), rows, [*groups, ("", 2)])


def audits(entries: Entries) -> Table:
    """Whether what was timed was the work."""

    def cells(entry: Entry, found: dict[str, Any]) -> list[str]:
        outputs, repeated = found["outputs"], found["repeated_image"]
        first = [str(outputs["compared"]), _verdict(outputs["passed"])]
        if not repeated:
            return [*first, *[NONE] * 6]
        quartiles = (f"{repeated['ratio'][key]:.3f}" for key in ("p25", "p50", "p75"))
        rounds = str(repeated["rounds"])
        return [*first, *quartiles, f"{repeated['allowed']:.2f}", rounds, _verdict(repeated["passed"])]

    columns = ("compared", "equal", "p25", "p50", "p75", "allowed p25", "rounds", "result")
    groups = (("timed outputs again, untimed", 2), ("time of distinct images / one repeated", 6))
    return _of_measured(entries, "audits", cells, columns, groups)


def hardware(entries: Entries) -> Table:
    """Shares of the ceilings, memory and energy."""

    def cells(entry: Entry, used: dict[str, Any]) -> list[str]:
        memory = used["peak_memory_mib"] or {}
        shares = (used["percent_of_matmul"], used["percent_of_copy"])
        figures = (*shares, memory.get("allocated"), memory.get("reserved"), used["joules_per_image"])
        return [entry["precision"], *(_optional(value, 3) for value in figures)]

    columns = ("precision", "% of matmul", "% of copy", "allocated", "reserved", "joules an image")
    groups = (("", 1), ("Offline against the ceilings", 2), ("peak memory, MiB", 2), ("", 1))
    return _of_measured(entries, "hardware", cells, columns, groups)


def memory(entries: Entries) -> Table:
    """What each candidate holds, in a process of its own."""
    rows = []
    for name, entry, found in measured(entries, "memory"):
        figures = [_optional(found[key]) for key in footprint.FIGURES]
        text = f"not known: {found['reason']}" if found["reason"] else ""
        rows.append(TableRow(name, [str(found["images"]), *figures], _kind(entry), text))
    columns = ("candidate", "images a call", "built", "peak of building", "peak of calls")
    return Table(columns, rows, (("", 1), ("MiB above the loaded model", 3)))


def changed(document: dict[str, Any]) -> Table:
    """What candidates in less than float32 and exports cost in accuracy, beside their speed."""
    rows = []
    for row in document["accuracy"] or ():
        entry = document["candidates"].get(row["name"], {})
        offline = entry.get("offline") or {}
        figures = [_optional(offline.get("images_per_s")), *(cell or NONE for cell in accuracy.cells(row))]
        rows.append(TableRow(row["name"], [entry.get("precision", NONE), *figures]))
    return Table(("candidate", "precision", "images/s", *accuracy.HEADINGS), rows)


def server(entries: Entries) -> Table:
    """The search's outcome a candidate."""

    def cells(entry: Entry, found: dict[str, Any]) -> list[str]:
        return [_rate(found), shortest(found["bound_ms"]), str(found["most_in_a_call"]), str(len(found["trials"]))]

    return _of_measured(entries, "server", cells, ("queries/s", "bound of p99, ms", "most in a call", "trials"))


def trials(entries: Entries) -> Table:
    """Every trial of every search."""
    rows = []
    for name, _, found in measured(entries, "server"):
        for trial in found["trials"]:
            figures = [number(trial[key]) for key in ("queries_per_s", "queries", "p99_ms")]
            rows.append(TableRow(name, [*figures, "valid" if trial["valid"] else "too slow"]))
    return Table(("candidate", "queries/s", "queries", "p99, ms", "result"), rows)


def line(entries: Entries) -> Table:
    """Frames at a fixed period."""
    counts, times = ("frames", "late", "dropped"), ("p50", "p90", "p99", "max")
    keys = ("period_ms", "deadline_ms", *counts, *(f"{key}_ms" for key in (*times, "jitter")))
    columns = ("period", "deadline", *counts, *times, "p99 − p50")
    groups = (("ms", 2), ("number", 3), ("latency from the trigger, ms", 5))
    return _of_measured(entries, "line", lambda entry, found: [number(found[key]) for key in keys], columns, groups)


def early_stopping(entries: Entries) -> Table:
    """Percentiles as they are and as upper bounds."""
    rows = []
    for name, entry, _ in measured(entries, "status"):
        found = [entry[each.key] for each in STREAMS]
        if any(found):
            rows.append(TableRow(name, [cell for figures in found for cell in _bounds(figures)], _kind(entry)))
    columns = ("candidate", *("queries", "p90", "bound", "p99", "bound") * len(STREAMS))
    return Table(columns, rows, [(f"{each.name}, ms", 5) for each in STREAMS])


def _bounds(figures: dict[str, Any] | None) -> list[str]:
    if not figures:
        return [NONE] * 5
    keys = ("p90_ms", "p90_early_stopping_ms", "p99_ms", "p99_early_stopping_ms")
    return [str(figures["queries"]), *(_optional(figures[key]) for key in keys)]


def points(settings: dict[str, Any]) -> Table:
    """Every setting that was measured."""
    keys, spread = ("batch", "draws", "rounds", "p50_ms", "p99_ms"), ("median", "min", "max")
    rows = []
    for point in settings["points"]:
        figures = (*map(point.get, keys), *map(point["images_per_s"].get, spread))
        rows.append(TableRow(point["candidate"], list(map(number, figures))))
    columns = ("candidate", "images a call", "draws", "rounds", "p50", "p99", *spread)
    return Table(columns, rows, (("", 3), ("a call, ms", 2), ("images/s", 3)))


def setup(entries: Entries) -> Table:
    """What each candidate takes before it is warm."""

    def cells(entry: Entry, _: object) -> list[str]:
        return [entry["precision"], *(number(entry[key], 3) for key in ("build_s", "first_image_s", "first_batch_s"))]

    columns = ("precision", "build", "first image", "first batch")
    return _of_measured(entries, "status", cells, columns, (("", 1), ("seconds", 3)))


def facts(document: Mapping[str, Any]) -> Table:
    """A JSON object as two columns; the names of nested values are joined by dots."""
    return Table((), [TableRow(name, [value]) for name, value in _flat(document, "")], plain=True)


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, NONE if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _of_measured(
    entries: Entries, key: str, cells: Callable[[Entry, Any], list[str]], columns: Sequence[str], groups: Groups = ()
) -> Table:
    """A row of `cells`, given entry and figures, for each candidate that has figures `key`."""
    rows = [TableRow(name, cells(entry, found), _kind(entry)) for name, entry, found in measured(entries, key)]
    return Table(("candidate", *columns), rows, groups)


def _optional(value: float | None, digits: int = 4) -> str:
    return NONE if value is None else number(value, digits)


def _kind(entry: Entry) -> str:
    return "ours" if entry["ours"] else ""


def _largest(entry: Entry) -> str:
    return _error(report.largest_error(entry["parity"])) if entry["parity"] else NONE


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _verdict(passed: bool) -> str:
    return "ok" if passed else FAILED


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _rate(found: dict[str, Any]) -> str:
    return "none" if found["queries_per_s"] is None else number(found["queries_per_s"])
