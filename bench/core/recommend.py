"""The setting for a line: rules over measured points, and a check of the choice on the line's own
clock.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from sprfast.bench.core import arrivals, sweeps, tables, timing
from sprfast.bench.core.peers import Candidate
from sprfast.bench.core.sweeps import Tell, plural
from sprfast.bench.core.work import Work
from sprfast.data.datasets import Category

AUROC_TIE = 1e-3  # a smaller difference on one set of test images says nothing
LEAST_QUERIES = 10  # of a check on the line
_NOTE = (
    "draws are at every sigma level, and the model's own number stands for its schedule; p99 by nearest rank, below "
    "100 rounds the slowest; AUROC by backend auto in float32; a threshold holds for the draws and the precision that "
    "it was calibrated in"
)
_SPEED = ("p50 ms", "p99 ms", "images/s")
_OF_POINT = ("candidate", "batch", "draws", "p99_ms")
_UNDECIDED = (*_OF_POINT, "images_per_s", "latency_ms", "image_AUROC", "AUROC_cost", "line")

Point = Mapping[str, Any]  # as `sweeps.measure` gives it


def section(
    work: Work,
    candidates: Sequence[Candidate],
    *,
    seconds: float,
    labelled: Category | None,
    period: float | None,
    margin: float,
    on_progress: Tell,
    into: dict[str, Any],
) -> None:
    """Fill `settings` of the report `into`, and with a period `recommendation`, each part as soon
    as it is known.

    Args:
        work: what is timed; the largest batch has all its samples.
        candidates: ours, of those that compute the definition.
        seconds: for all rounds together, and again for the check on the line.
        labelled: test images for the accuracy; None leaves it out.
        period: seconds from part to part; None recommends nothing and measures `sweeps.cross`
            instead of `sweeps.grid`.
        margin: as in `recommend`.

    Raises:
        InputError: a labelled image cannot be scored.
    """
    model = work.model
    own = sweeps.own_draws(model.schedule)
    parts = 1 + (labelled is not None) + (period is not None)

    def tell(part: int, done: float, what: str) -> None:
        on_progress((part + done) / parts, what)

    found: dict[str, Any] = {"points": [], "failed": [], "accuracy": None, "draws": own, "note": _NOTE}
    into["settings"] = found
    points = sweeps.cross(len(work), own) if period is None else sweeps.grid(len(work), own)
    points = [(size, draws) for size, draws in points if sweeps.allowed(model.schedule, draws)]
    sweeps.measure(work, candidates, points, seconds, functools.partial(tell, 0), found)
    if labelled is not None:
        rows = found["accuracy"] = []
        counts = sorted({draws for _, draws in points})
        for row in sweeps.accuracy(model, labelled, work.device, counts, functools.partial(tell, 1)):
            rows.append(row)
    if period is None:
        return
    precisions = {each.name: each.precision for each in candidates}
    chosen = recommend(
        found["points"], found["accuracy"], period=period, margin=margin, draws=own, precisions=precisions
    )
    into["recommendation"] = chosen
    if chosen["candidate"] is not None:
        tell(parts - 1, 0.0, "recommendation: check on the line")
        candidate = next(each for each in candidates if each.name == chosen["candidate"])
        chosen["line"] = _line(sweeps.varied(work, chosen["draws"]), candidate, chosen["batch"], period, seconds)
    tell(parts - 1, 1.0, "recommendation: done")


def recommend(
    points: Sequence[Point],
    accuracy: Sequence[Mapping[str, Any]] | None,
    *,
    period: float,
    margin: float,
    draws: int,
    precisions: Mapping[str, str],
) -> dict[str, Any]:
    """The setting for a line on which a part comes every `period` seconds.

    A setting of B images holds if its p99 is at most (1 - margin)·B·period. The model's own draws
    come first wherever they hold, even if others have a higher image_AUROC: threshold and published
    accuracy are those of the model as it is, and one set of test images is too few to leave them
    for a gain. If they do not hold, the draws within `AUROC_TIE` of the best image_AUROC that holds
    come first, and where no AUROC is known, the number nearest to the model's own. Then float32
    comes before a lower precision, whose AUROC is not measured; then the lowest latency; then the
    most headroom.

    Args:
        points: figures of `sweeps.measure`.
        accuracy: rows of `sweeps.accuracy`; None without labelled images.
        period: seconds.
        margin: share of the time in which a batch comes, 0 to below 1.
        draws: the model's own.
        precisions: of each candidate's convolutions.

    Returns:
        Plain values. `latency_ms` is from the trigger of a batch's first image to its answer,
        (B - 1)·period + p99; `AUROC_cost` is image_AUROC with the model's draws less that of the
        setting; `reason` is one sentence; `line` is null until the setting has been checked. If
        nothing holds, all of the setting is null.
    """
    known = {row["draws"]: row["image_AUROC"] for row in accuracy or () if row["image_AUROC"] is not None}
    result = {"period_ms": 1e3 * period, "margin": margin, **dict.fromkeys(_UNDECIDED)}

    def latency_ms(point: Point) -> float:
        return float((point["batch"] - 1) * 1e3 * period + point["p99_ms"])

    def rank(point: Point) -> tuple[bool, float, float]:
        return precisions[point["candidate"]] != "float32", latency_ms(point), point["p99_ms"] / point["batch"]

    held = [point for point in points if _least_period_ms(point, margin) <= 1e3 * period]
    if not held:
        return result | {"reason": _nothing_holds(points, period, margin)}
    preferred = _preferred_draws({point["draws"] for point in held}, known, draws)
    chosen = min((point for point in held if point["draws"] in preferred), key=rank)
    auroc, own = known.get(chosen["draws"]), known.get(draws)
    cost = None if auroc is None or own is None else own - auroc
    return result | {
        **{key: chosen[key] for key in _OF_POINT},
        "images_per_s": chosen["images_per_s"]["median"],
        "latency_ms": latency_ms(chosen),
        "image_AUROC": auroc,
        "AUROC_cost": cost,
        "reason": _reason(chosen["draws"], draws, period, cost) + _unknown(auroc, accuracy),
    }


def verify(
    answer: Callable[[int], object], batch: int, *, period: float, seconds: float, clock: arrivals.WallClock
) -> dict[str, Any]:
    """The figures of a line on which `batch` images are due every batch·period, and must be
    answered before the next are; the promise was kept if none is late or dropped.

    Args:
        answer: given the number of a query of `batch` images; returns when it is answered.
        batch: images a query.
        period: seconds from image to image.
        seconds: how long, about; at least `LEAST_QUERIES` queries.
        clock: passes the time.

    Returns:
        As `arrivals.line`: a `frame` is a query here.
    """
    due = batch * period
    frames = max(LEAST_QUERIES, int(seconds / due))
    return arrivals.line(lambda queries: answer(queries[0]), clock, period=due, frames=frames)


def table(report: Mapping[str, Any]) -> RenderableType:
    """The sweeps and the recommendation of a report for a terminal; fits 80 columns."""
    found, chosen = report["settings"], report["recommendation"]
    parts: list[RenderableType] = []
    if found and found["points"]:
        parts += [_batch_sweep(found), _draws_sweep(found)]
    lines = [*map(left_out, found["failed"]), f"settings: {found['note']}"] if found else []
    lines += _words(chosen) if chosen else []
    return Group(*parts, *lines)


def _line(work: Work, candidate: Candidate, batch: int, period: float, seconds: float) -> dict[str, Any]:
    answer = work.build(candidate)

    def call(index: int) -> None:
        timing.timed(functools.partial(sweeps.query, work, answer, batch, index), work.device)

    call(0)  # on a line the engine is warm
    return verify(call, batch, period=period, seconds=seconds, clock=arrivals.WallClock())


def _least_period_ms(point: Point, margin: float) -> float:
    """The shortest period at which the point holds."""
    return float(point["p99_ms"] / ((1.0 - margin) * point["batch"]))


def _preferred_draws(held: set[int], known: Mapping[int, float], own: int) -> set[int]:
    if own in held:
        return {own}
    measured = {draws: auroc for draws, auroc in known.items() if draws in held}
    if measured:
        return {draws for draws, auroc in measured.items() if auroc >= max(measured.values()) - AUROC_TIE}
    return {min(held, key=lambda draws: (abs(draws - own), -draws))}


def _nothing_holds(points: Sequence[Point], period: float, margin: float) -> str:
    if not points:
        return "no setting could be measured"
    fastest = min(points, key=lambda point: (_least_period_ms(point, margin), point["batch"]))
    least = _least_period_ms(fastest, margin)
    step = 10.0 ** (math.floor(math.log10(least)) - 2)
    least = math.ceil(least / step - 1e-9) * step  # what is promised in three digits must hold
    many = f" and {fastest['batch']} images a call" if fastest["batch"] > 1 else ""
    setting = f"{fastest['candidate']} with {plural(fastest['draws'], 'draw')}{many}"
    return f"no setting holds {_ms(1e3 * period)}; the fastest, {setting}, holds {_ms(least)}"


def _reason(draws: int, own: int, period: float, cost: float | None) -> str:
    target, of_model = _ms(1e3 * period), f"the model's own {plural(own, 'draw')}"
    if draws == own:
        return f"{of_model} {'holds' if own == 1 else 'hold'} {target}"
    does = "does" if draws == 1 else "do"
    reason = f"no setting with {of_model} holds {target}, but {plural(draws, 'draw')} {does}"
    if cost is None:
        return reason
    return f"{reason}, with image_AUROC {100 * abs(cost):.1f} points {'higher' if cost < 0 else 'lower'}"


def _unknown(auroc: float | None, accuracy: object) -> str:
    if auroc is not None:
        return ""
    why = "unknown, give --data to know" if accuracy is None else "not defined on the labelled images"
    return f"; image_AUROC is {why}"


def _batch_sweep(found: Mapping[str, Any]) -> Table:
    def cells(point: Point) -> list[str]:
        spread = point["images_per_s"]
        return [str(point["batch"]), *_speed(point), f"{spread['min']:.4g}-{spread['max']:.4g}"]

    points = [point for point in found["points"] if point["draws"] == found["draws"]]
    return _filled("images of a call", ("images\na call", *_SPEED, "min-max"), points, cells)


def _draws_sweep(found: Mapping[str, Any]) -> Table:
    points = sorted((point for point in found["points"] if point["batch"] == 1), key=lambda point: point["draws"])
    rows = {row["draws"]: row for row in found["accuracy"] or ()}
    metrics = sweeps.METRICS if rows else ()

    def cells(point: Point) -> list[str]:
        values = [rows.get(point["draws"], {}).get(key) for key in metrics]
        percents = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        mark = "*" if point["draws"] == found["draws"] else ""
        return [f"{mark}{point['draws']}", *_speed(point), *percents]

    headings = ("draws", *_SPEED, *(key.replace("_", "\n") for key in metrics))
    result = _filled("draws, one image a call", headings, points, cells)
    result.caption = "* the model's own"
    return result


def _filled(title: str, headings: Sequence[str], points: Sequence[Point], cells: Callable[[Point], list[str]]) -> Table:
    """A row a point, those of a candidate together."""
    result = tables.empty(headings, title)
    for name in dict.fromkeys(point["candidate"] for point in points):
        for index, point in enumerate(each for each in points if each["candidate"] == name):
            result.add_row("" if index else name, *cells(point))
    return result


def _speed(point: Point) -> list[str]:
    return [f"{value:.4g}" for value in (point["p50_ms"], point["p99_ms"], point["images_per_s"]["median"])]


def left_out(row: Mapping[str, Any]) -> str:
    """A point that could not be timed, and why."""
    where = "" if row["batch"] is None else f", {plural(row['batch'], 'image')} a call"
    return f"{row['candidate']}, {plural(row['draws'], 'draw')}{where}: left out, {row['reason']}"


def _words(chosen: Mapping[str, Any]) -> list[str]:
    target = f"a part every {_ms(chosen['period_ms'])} with {chosen['margin']:.0%} to spare"
    if chosen["candidate"] is None:
        return [f"Recommended for {target}: nothing; {chosen['reason']}"]
    auroc = "" if chosen["image_AUROC"] is None else f", image_AUROC {100 * chosen['image_AUROC']:.1f}"
    setting = f"{chosen['candidate']}, {plural(chosen['draws'], 'draw')}, {plural(chosen['batch'], 'image')} a call"
    times = f"p99 {_ms(chosen['p99_ms'])}, answer {_ms(chosen['latency_ms'])} after the trigger"
    return [
        f"Recommended for {target}: {setting}",
        f"  {times}, {chosen['images_per_s']:.4g} images/s{auroc}",
        f"  {chosen['reason']}",
        f"  {_checked(chosen['line'])}",
    ]


def _checked(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "not checked on the line's clock"
    kept = "kept" if line["late"] + line["dropped"] == 0 else "NOT kept"
    counts = f"{line['late']} late and {line['dropped']} dropped of {plural(line['frames'], 'call')}"
    return f"on the line's clock {kept}: {counts}, p99 {_ms(line['p99_ms'])}, jitter {_ms(line['jitter_ms'])}"


def _ms(value: float) -> str:
    return f"{value:.4g} ms" if value < 1e4 else f"{value / 1e3:.4g} s"
