"""A page of a shift, from the log of its verdicts: rejects over time, drift of the scores, and the
rate of false rejects that was promised beside what was seen.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from array import array
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sprfast.data.images import display_name
from sprfast.errors import InputError
from sprfast.evaluation.shift_template import HTML
from sprfast.formats import log_verification
from sprfast.formats.log_verification import Verification
from sprfast.formats.verdict_log import Record

VERDICTS = ("PASS", "REJECT", "ERROR")
LISTED = 100  # of the last rejects and errors
BARS = 48  # at most
_STEPS = (60, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)  # seconds of a bar
Numbers = npt.NDArray[np.float64]


@dataclasses.dataclass
class Shift:
    """The answers of a log within a time."""

    verification: Verification
    times: Numbers  # (n,) seconds since 1970
    ratios: Numbers  # (n,) score ÷ threshold; NaN where there is none
    verdicts: npt.NDArray[np.int8]  # (n,) places in `VERDICTS`
    models: dict[tuple[str, float | None], Counter[str]]  # verdicts by model and threshold, in order of time
    promises: dict[tuple[str, float | None], Record]  # thresholds as the log has them
    last: deque[Record]  # of rejects and errors


def read(path: Path, since: datetime.datetime | None = None, until: datetime.datetime | None = None) -> Shift:
    """The answers of a log, up to the first line that is not as it was written.

    Args:
        path: of the log; files that it has filled before are read too.
        since, until: the answers from `since` on and before `until`; None: all.

    Raises:
        InputError: the log cannot be read, or has no answer in this time.
    """
    times, ratios, verdicts = array("d"), array("d"), array("b")
    low = since.timestamp() if since else -math.inf
    high = until.timestamp() if until else math.inf
    shift = Shift(Verification(), np.empty(0), np.empty(0), np.empty(0, np.int8), {}, {}, deque(maxlen=LISTED))

    def take(record: Record) -> None:
        if record.get("event") == "model" and record["threshold"]:
            shift.promises[record["model_sha256"], record["threshold"].get("value")] = record["threshold"]
        if "event" in record:
            return
        at, verdict = _seconds(record), record["verdict"]
        if not low <= at < high:
            return
        times.append(at)
        ratios.append(_ratio(record))
        verdicts.append(VERDICTS.index(verdict) if verdict in VERDICTS else VERDICTS.index("ERROR"))
        shift.models.setdefault((record["model_sha256"], record["threshold"]), Counter())[verdict] += 1
        if verdict != "PASS":
            shift.last.append(record)

    shift.verification = log_verification.verify(path, on_record=take)
    if not times:
        raise InputError(shift.verification.problem or f"{path}: has no answer in this time")
    shift.times, shift.ratios = np.array(times), np.array(ratios)
    shift.verdicts = np.array(verdicts, np.int8)
    return shift


def render(shift: Shift, name: str) -> str:
    """The page: HTML without scripts, with its plots and style inside. Times are this machine's."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found = shift.verification
    counts = {each: int(np.sum(shift.verdicts == index)) for index, each in enumerate(VERDICTS)}
    begin, end = _local(shift.times.min()), _local(shift.times.max())
    return environment.from_string(HTML).render(
        name=display_name(name),
        span=f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} ({begin.tzname()})",
        parts=f"{shift.times.size:,}",
        counts=[(each, f"{count:,}", _percent(count, shift.times.size)) for each, count in counts.items()],
        chain=found,
        models=[_promise(*each, shift) for each in shift.models.items()],
        rejects=_bars(shift),
        drift=_drift(shift),
        hours=_hours(shift),
        last=[_listed(record, float(np.ptp(shift.times))) for record in reversed(shift.last)],
    )


def interval(events: int, total: int) -> tuple[float, float]:
    """The 95 % interval of Wilson for a rate of which `events` of `total` were seen."""
    z = 1.959964
    centre = (events + z * z / 2) / (total + z * z)
    half = z * math.sqrt(events * (total - events) / total + z * z / 4) / (total + z * z)
    return max(0.0, centre - half), min(1.0, centre + half)


def _seconds(record: Record) -> float:
    try:
        return datetime.datetime.fromisoformat(record["time"]).timestamp()
    except ValueError as error:
        raise InputError(f"record {record['number']}: {record['time']!r} is no time") from error


def _ratio(record: Record) -> float:
    score, threshold = record["score"], record["threshold"]
    return score / threshold if score is not None and threshold is not None and threshold > 0 else math.nan


def _local(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(float(seconds)).astimezone()


def _percent(events: int, total: int) -> str:
    return f"{100 * events / total:.2f} %" if total else "-"


def _promise(model: tuple[str, float | None], counts: Counter[str], shift: Shift) -> dict[str, Any]:
    """What was promised of a model's false rejects, what was seen, and what that means."""
    sha256, threshold = model
    scored = counts["PASS"] + counts["REJECT"]
    promise = shift.promises.get(model, {})
    rate, samples = promise.get("false_reject_rate") or 0.0, promise.get("samples", 0)
    row = {
        "model": sha256[:12],
        "threshold": "-" if threshold is None else f"{threshold:.6g}",
        "promised": f"at most {100 * rate:g} %, from {samples} good images" if rate else "nothing: not calibrated",
        "seen": f"{counts['REJECT']:,} of {scored:,} scored parts, {_percent(counts['REJECT'], scored)}",
        "meaning": "no part was scored",
    }
    if scored:
        low, high = interval(counts["REJECT"], scored)
        row["seen"] += f" (95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
        row["meaning"] = "the share of defective parts and of false rejects together"
    if scored and rate:
        row["meaning"] = (
            "more than false rejects at this rate explain: parts are defective, or the scores have drifted"
            if low > rate
            else "no more than the promise allows for good parts"
        )
    return row


def _slots(shift: Shift) -> tuple[npt.NDArray[np.int64], float, int, int]:
    """The slot of each answer, the first slot's time, the seconds of one, and their number."""
    begin, end = float(shift.times.min()), float(shift.times.max())
    step = next((each for each in _STEPS if (end - begin) / each < BARS - 1), 0)
    step = step or 86400 * math.ceil((end - begin) / 86400 / (BARS - 1))
    offset = _local(begin).utcoffset() or datetime.timedelta()
    first = math.floor((begin + offset.total_seconds()) / step) * step - offset.total_seconds()
    slots = ((shift.times - first) // step).astype(np.int64)
    return slots, first, step, int(slots.max()) + 1


def _bars(shift: Shift) -> dict[str, Any]:
    """Bars of the share of rejects and errors, in percent of the plot's height."""
    slots, first, step, number = _slots(shift)
    by_verdict = [np.bincount(slots[shift.verdicts == index], minlength=number) for index in range(len(VERDICTS))]
    total = np.sum(by_verdict, axis=0)
    shares = [np.divide(each, total, out=np.zeros(number), where=total > 0) for each in by_verdict]
    top = _ceiling(float(np.max(shares[1] + shares[2])))
    bars = []
    for slot in np.flatnonzero(total):
        rejects, errors = shares[1][slot] / top, shares[2][slot] / top
        title = f"{_clock(first + slot * step, step)}: {total[slot]:,} parts, "
        title += f"{by_verdict[1][slot]:,} rejected, {by_verdict[2][slot]:,} errors"
        bars.append({"x": 100 * slot / number, "rejects": 100 * rejects, "errors": 100 * errors, "title": title})
    return {
        "bars": bars,
        "width": 100 / number,
        "top": f"{100 * top:g} %",
        "each": _length(step),
        "ticks": _ticks(first, step, number),
    }


def _drift(shift: Shift) -> dict[str, Any] | None:
    """The scores of parts that passed, as lines in percent of the plot's size; None: there are
    none.
    """
    passed = (shift.verdicts == VERDICTS.index("PASS")) & np.isfinite(shift.ratios)
    if not passed.any():
        return None
    slots, first, step, number = _slots(shift)
    found = np.full((3, number), np.nan)
    order = np.argsort(slots[passed], kind="stable")
    places, ratios = slots[passed][order], shift.ratios[passed][order]
    for values in np.split(np.arange(places.size), np.flatnonzero(np.diff(places)) + 1):
        found[:, places[values[0]]] = np.quantile(ratios[values], (0.05, 0.5, 0.95))
    top = max(1.1, float(np.nanmax(found)) * 1.05)
    x = 100 * (np.arange(number) + 0.5) / number
    y = 100 - 100 * np.clip(found, 0, top) / top
    runs = [run for run in np.split(np.arange(number), np.flatnonzero(np.isnan(found[1]))) if run.size]
    runs = [kept for run in runs if (kept := run[~np.isnan(found[1][run])]).size]
    return {
        "bands": [_points(x[[*run, *run[::-1]]], [*y[0][run], *y[2][run][::-1]]) for run in runs],
        "lines": [_points(x[run], y[1][run]) for run in runs if run.size > 1],
        "dots": [(x[run[0]], y[1][run[0]]) for run in runs if run.size == 1],
        "limit": 100 - 100 / top,
        "top": f"{top:.2g}",
        "calibration": [100 - 100 * ratio / top for ratio in _calibrated(shift).values() if ratio < top],
        "sentence": _drift_sentence(shift, found[1]),
        "ticks": _ticks(first, step, number),
    }


def _calibrated(shift: Shift) -> dict[tuple[str, float | None], float]:
    """The calibration's median ÷ threshold, of each model that answered and has one."""
    found = {}
    for model in shift.models:
        threshold, scores = model[1], shift.promises.get(model, {}).get("scores")
        if threshold and scores:
            found[model] = scores["median"] / threshold
    return found


def _drift_sentence(shift: Shift, medians: Numbers) -> str:
    known = medians[~np.isnan(medians)]
    text = f"The median score of parts that passed was {known[0]:.2f} of the limit at first and {known[-1]:.2f} at last"
    calibrated = [f"{ratio:.2f}" for ratio in _calibrated(shift).values()]
    return f"{text}; at the calibration it was {', then '.join(calibrated)}." if calibrated else f"{text}."


def _hours(shift: Shift) -> list[dict[str, Any]]:
    """A row an hour of the clock in which there were parts."""
    offset = (_local(shift.times.min()).utcoffset() or datetime.timedelta()).total_seconds()
    hours = (shift.times + offset) // 3600
    rows = []
    for hour in np.unique(hours):
        there = hours == hour
        counts = [int(np.sum(shift.verdicts[there] == index)) for index in range(len(VERDICTS))]
        ratios = shift.ratios[there & np.isfinite(shift.ratios)]
        rows.append(
            {
                "hour": _clock(hour * 3600 - offset, float(np.ptp(shift.times))),
                "parts": f"{sum(counts):,}",
                "counts": [f"{count:,}" for count in counts],
                "share": _percent(counts[1], counts[0] + counts[1]),
                "median": f"{np.median(ratios):.2f}" if ratios.size else "-",
            }
        )
    return rows


def _listed(record: Record, span: float) -> dict[str, str]:
    ratio, at = _ratio(record), _seconds(record)
    return {
        "time": f"{_clock(at, span)}:{_local(at):%S}",
        "id": display_name(str(record["id"])),
        "verdict": record["verdict"],
        "ratio": "-" if math.isnan(ratio) else f"{ratio:.2f}",
        "reason": display_name(str(record.get("reason") or "")),
    }


def _points(x: Any, y: Any) -> str:
    return " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x, y, strict=True))


def _ceiling(share: float) -> float:
    """The end of an axis from 0 that holds `share`."""
    tops = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    return next((top for top in tops if share <= top), 1.0)


def _ticks(first: float, step: float, number: int) -> list[str]:
    """Times at the beginning, the middle and the end of an axis."""
    return [_clock(first + step * slot, step * number) for slot in (0, number / 2, number)]


def _clock(seconds: float, span: float) -> str:
    return f"{_local(seconds):%m-%d %H:%M}" if span >= 86400 else f"{_local(seconds):%H:%M}"


def _length(seconds: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds % unit == 0:
            return f"{seconds // unit} {name}{'' if seconds == unit else 's'}"
    raise AssertionError(seconds)
