"""A bench report as one HTML page that needs nothing else: the answer first, then the evidence,
then the conditions.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sprfast.bench.core import recommend, report
from sprfast.bench.core.sweeps import plural
from sprfast.bench.page import plots
from sprfast.bench.page import tables as page_tables
from sprfast.bench.page.plots import Series, number, shortest
from sprfast.bench.page.tables import DEFINITIONS, FAILED, Entries, Table, measured
from sprfast.bench.page.template import HTML
from sprfast.system import files

_STEPS = ("channels_last",)  # of the waterfall, between the baseline and our backends
_EARLY_STOPPING = (
    "The bound is the smallest latency seen that the percentile exceeds with a probability of at most 1 %, as MLPerf's "
    "early stopping: few queries make it larger, and where there are too few (below 44 for p90, below 459 for p99) "
    "there is none."
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A table, a plot, or the reason why it is left out."""

    title: str = ""
    table: Table | None = None
    svg: str = ""  # its texts are escaped
    caption: str = ""
    absent: str = ""
    folded: bool = False  # open on request


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]
    notes: Sequence[str] = ()


def write(document: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page of a report.

    Raises:
        InputError: the file cannot be written; an old file stays as it was.
        KeyError: as `render`.
    """
    files.write_bytes(path, render(document).encode(errors="replace"))


def render(document: dict[str, Any]) -> str:
    """The page of a report, see `report_file`: HTML without scripts, its plots and style inside.

    The same report gives the same page. What the report has no data for is left out with the
    reason.

    Raises:
        KeyError: a field that every report has is missing.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    given, machine, entries = document["input"], document["environment"], document["candidates"]
    draws = plural(sum(level["draws"] for level in document["model"]["schedule"]["levels"]), "draw")
    date = machine["date_utc"].replace("T", " ").replace("+00:00", " UTC")
    about = (f"{given['height']} × {given['width']} pixels", f"{draws} an image", f"{document['work']} timed", date)
    bounds = _table("", page_tables.early_stopping(entries), "no latencies", _EARLY_STOPPING)
    return environment.from_string(HTML).render(
        title=f"sprfast bench: {machine['devices'][document['device']]['name'] or document['device']}",
        subject=" · ".join(about),
        timed=f"Timed: {document['timed']}.",
        note=document["note"],
        complete=document["complete"],
        failed=FAILED,
        failures=report.failures(document),
        answer=_answer(document["recommendation"]),
        sections=(
            Section("Summary", [Part(table=page_tables.summary(document))], page_tables.notes(document)),
            Section("Throughput and latency", _speed(document)),
            Section("Batch size, draws and accuracy", *_settings(document)),
            Section("Errors and audits", _correctness(document)),
            Section("Ceilings, memory and energy", *_hardware(document)),
            Section("Server and Line", _by_the_clock(entries)),
            Section("Percentiles as upper bounds", [bounds]),
            Section("Conditions", _conditions(document)),
        ),
    )


def _answer(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the page says of a recommendation: whether it `holds`, `title`, `reason` and `facts`."""
    if not found:
        return None
    facts = [("period", f"{shortest(found['period_ms'])} ms from image to image, {100 * found['margin']:g} % to spare")]
    if found["candidate"] is None:
        return {"holds": False, "title": "No setting holds this period", "reason": found["reason"], "facts": facts}
    call, draws, line = plural(found["batch"], "image"), plural(found["draws"], "draw"), found["line"]
    kept = not line or line["late"] + line["dropped"] == 0
    facts += [
        ("a call", f"{call}, p99 {number(found['p99_ms'])} ms, {number(found['images_per_s'])} images/s"),
        ("latency", f"{number(found['latency_ms'])} ms from the trigger of a call's first image to its verdict"),
        ("image AUROC", _auroc(found)),
        ("checked", _checked(line, "kept" if kept else "NOT kept") if line else "not tried at this period"),
    ]
    title = f"Recommended: {found['candidate']}, {call} a call, {draws}"
    return {"holds": kept, "title": title, "reason": found["reason"], "facts": facts}


def _auroc(found: dict[str, Any]) -> str:
    if found["image_AUROC"] is None:
        return "not known"
    value, cost = f"{100 * found['image_AUROC']:.1f} %", found["AUROC_cost"]
    if cost is None:
        return value
    change = f"{100 * abs(cost):.1f} points {'below' if cost > 0 else 'above'}" if cost else "the same as"
    return f"{value}, {change} that of the model's own number of draws"


def _checked(line: dict[str, Any], kept: str) -> str:
    counts = f"{number(line['late'])} late and {number(line['dropped'])} dropped of {plural(line['frames'], 'call')}"
    p99 = f"p99 {number(line['p99_ms'])} ms of {shortest(line['deadline_ms'])} ms"
    return f"tried at this period and {kept}: {counts}, {p99}"


def _speed(document: dict[str, Any]) -> list[Part]:
    entries = document["candidates"]
    offline = throughputs(entries)
    latency = _series(entries, "single_stream", lambda found: [tuple(found[f"p{q}_ms"] for q in (50, 90, 99))])
    samples = _series(entries, "single_stream", lambda found: [(1e3 * value,) for value in found["seconds"]])
    colours = "Blue and bold: sprfast; grey: others."
    return [
        _plot("Throughput", plots.throughput, offline, "no candidate has Offline figures", colours),
        _plot("Latency", plots.latency, latency, "no candidate has SingleStream figures"),
        _plot("Latency distribution", plots.distribution, samples, "no candidate has SingleStream figures"),
        _waterfall(entries, document["baseline"]),
    ]


def _waterfall(entries: Entries, baseline: str) -> Part:
    """From the baseline over the steps to our fastest backend, which ends it."""
    title = "From the published pipeline to our fastest backend"
    steps = _series(entries, "single_stream", lambda found: [(found["p50_ms"],)])
    ours = [step for step in steps if step.ours]
    first = [step for name in (baseline, *_STEPS) for step in steps if step.name == name]
    if not ours or not first or first[0].name != baseline:
        return Part(title, absent=f"it needs SingleStream figures of {baseline} and of one of our backends")
    fastest = min(ours, key=lambda step: step.values[0])
    chosen = [*first, *ours[: ours.index(fastest) + 1]]
    return _plot(title, plots.waterfall, chosen, caption="Each factor is the gain over the line above.")


def _settings(document: dict[str, Any]) -> tuple[list[Part], list[str]]:
    settings, entries = document["settings"], document["candidates"]
    if not settings:
        return [Part(absent="the run measured no sweep over batch size and draws")], []
    own = settings["draws"]

    def sweep(axis: str, fixed: str, at: int, values: Callable[[dict[str, Any]], tuple[float, ...]]) -> list[Series]:
        """A series a candidate over `axis`, where `fixed` has the value `at`."""
        chosen: dict[str, list[tuple[float, ...]]] = {}
        for point in sorted(settings["points"], key=lambda point: point[axis]):
            if point[fixed] == at:
                chosen.setdefault(point["candidate"], []).append(values(point))
        return [Series(name, entries[name]["ours"], of_name) for name, of_name in chosen.items()]

    def speed(point: dict[str, Any]) -> tuple[float, ...]:
        return (point["batch"], *(point["images_per_s"][key] for key in ("median", "min", "max")))

    speeds, draws = sweep("batch", "draws", own, speed), plural(own, "draw")
    times = sweep("draws", "batch", 1, lambda point: (point["draws"], point["p50_ms"]))
    parts = [
        _plot("Batch size", plots.batch_sweep, speeds, f"no figures with {draws}", f"With {draws}."),
        _plot("Draws", plots.draws_sweep, times, "no figures of single images", f"The model's own number is {own}."),
        _trade_off(settings, times, document["recommendation"]),
        Part("Every setting that was measured", page_tables.points(settings), folded=True),
    ]
    return parts, [*map(recommend.left_out, settings["failed"]), settings["note"]]


def _trade_off(settings: dict[str, Any], times: Sequence[Series], recommendation: dict[str, Any] | None) -> Part:
    """AUROC against time, by the recommended candidate or else the fastest."""
    title = "Accuracy against time"
    if not settings["accuracy"]:
        return Part(title, absent="accuracy needs labelled images")
    if not times:
        return Part(title, absent="no figures of single images")
    wanted = recommendation["candidate"] if recommendation else None
    fastest = min(times, key=lambda each: each.values[0][1])
    chosen = next((each for each in times if each.name == wanted), fastest)
    milliseconds = {int(draws): time for draws, time in chosen.values}
    known = sorted(
        (each for each in settings["accuracy"] if each["draws"] in milliseconds), key=lambda each: each["draws"]
    )
    lines = []
    for key, ours in (("image_AUROC", True), ("pixel_AUROC", False)):
        defined = [(each["draws"], 100 * each[key]) for each in known if each[key] is not None]
        values = [(milliseconds[draws], percent, draws) for draws, percent in defined]
        lines += [Series(key.replace("_", " "), ours, values)] if values else []
    images = settings["accuracy"][0]["images"]
    caption = f"Times of {chosen.name}, one image a call; AUROC of {plural(images, 'labelled image')}."
    return _plot(title, plots.trade_off, lines, "no AUROC is defined on these images", caption)


def _correctness(document: dict[str, Any]) -> list[Part]:
    entries, changed = document["candidates"], page_tables.changed(document)
    caption = f"Errors relative to {document['truth']}: rms over rms, maximum over maximum."
    return [
        _table("Errors against the definition", page_tables.parity(entries), "no candidate was compared", caption),
        _table("Audits", page_tables.audits(entries), "no audit was made"),
        *([Part("Accuracy in less than float32 and of exports", changed)] if changed.rows else ()),
    ]


def _hardware(document: dict[str, Any]) -> tuple[list[Part], list[str]]:
    ceilings, entries = document["ceilings"], document["candidates"]
    used, held = page_tables.hardware(entries), page_tables.memory(entries)
    if not ceilings or not used.rows:
        return [Part(absent="the run did not measure them")], []
    matmul = _by_precision(ceilings["matmul_gflop_per_s"], "GFLOP/s")
    least = _by_precision(ceilings["least_mb_per_image"], "MB")
    reasons = dict.fromkeys(found["energy_reason"] for _, _, found in measured(entries, "hardware"))
    notes = [
        f"Ceilings measured in this run: matrix product {matmul}; copy {shortest(ceilings['copy_gb_per_s'])} GB/s",
        f"An image needs {shortest(ceilings['gflop_per_image'])} GFLOP and moves at least {least}",
        *(f"Energy: {reason}" for reason in reasons if reason),
    ]
    return [Part(table=used), *([Part("Memory in a process of its own", held)] if held.rows else ())], notes


def _by_precision(values: Mapping[str, float], unit: str) -> str:
    return ", ".join(f"{shortest(value)} {unit} in {precision}" for precision, value in values.items())


def _by_the_clock(entries: Entries) -> list[Part]:
    searched = page_tables.server(entries)
    parts = [_table("Server", searched, "a search takes longer than the time for a scenario, or the run ended before")]
    if searched.rows:
        parts.append(Part("Every trial of the Server search", page_tables.trials(entries), folded=True))
    return [*parts, _table("Line", page_tables.line(entries), "the run ended before")]


def _conditions(document: dict[str, Any]) -> list[Part]:
    run = {key: document[key] for key in ("schema_version", "device", "work", "seconds_per_scenario", "baseline")}
    model, entries = document["model"], document["candidates"]
    levels = "; ".join(
        f"t = {level['t']:g}: {plural(level['draws'], 'draw')}, weight {level['weight']:g}"
        for level in model["schedule"]["levels"]
    )
    return [
        Part("Run", page_tables.facts({**run, **document["input"]})),
        Part("Model", page_tables.facts({**model, "schedule": {**model["schedule"], "levels": levels}})),
        Part("Scenarios", page_tables.facts(DEFINITIONS)),
        Part("Candidates", page_tables.facts({name: entry["description"] for name, entry in entries.items()})),
        _table("Build and first calls", page_tables.setup(entries), "no candidate was measured"),
        Part("Machine and versions", page_tables.facts(document["environment"])),
    ]


def throughputs(entries: Entries) -> list[Series]:
    """What `plots.throughput` draws: (median, min, max) images/s of each candidate."""
    return _series(
        entries, "offline", lambda found: [tuple(found[f"{key}images_per_s"] for key in ("", "min_", "max_"))]
    )


def _series(
    entries: Entries, key: str, values: Callable[[Mapping[str, Any]], Sequence[tuple[float, ...]]]
) -> list[Series]:
    return [Series(name, entry["ours"], values(found)) for name, entry, found in measured(entries, key)]


def _plot(
    title: str, draw: Callable[[Sequence[Series]], str], series: Sequence[Series], absent: str = "", caption: str = ""
) -> Part:
    """A plot of the series; where there are none, the reason."""
    return Part(title, svg=draw(series), caption=caption) if series else Part(title, absent=absent)


def _table(title: str, table: Table, absent: str, caption: str = "") -> Part:
    """A table; where it has no rows, the reason."""
    return Part(title, table, caption=caption) if table.rows else Part(title, absent=absent)
