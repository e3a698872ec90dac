"""What a soak run found: counts, slopes, and the checks that held or did not."""

from __future__ import annotations

import dataclasses
import platform
import signal
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from sprfast._version import __version__
from sprfast.bench.line.soak import samples
from sprfast.bench.line.soak.answers import AnswerCounts
from sprfast.bench.line.soak.options import SoakOptions
from sprfast.bench.line.soak.plan import KINDS, TWICE, error_of
from sprfast.bench.line.soak.samples import Samples
from sprfast.engine.predictor import Predictor
from sprfast.line.health import Health

SCHEMA_VERSION = 1
# KB for each 1,000 frames that the process may grow by, as the median slope: an allocator grows in
# steps
MEMORY_LIMIT = 1.0
# frames after the warm-up from which memory is judged; before, what an allocator keeps outweighs
# what grows
JUDGED = 20_000
# share of the frames that may miss their deadlines, as behind the callbacks that hang, and frames
# from which that is judged
LATE_LIMIT, LATE_JUDGED = 0.1, 10_000

# Fields of `ProcessSample`, and their headings.
_QUANTITIES = {
    "memory_kb": "memory, KB",
    "threads": "threads",
    "python_threads": "Python threads",
    "descriptors": "descriptors",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
}
Check = tuple[str, bool | None, str]  # its name, whether it held (None: it is not judged), and what was found


@dataclasses.dataclass
class Swaps:
    """Models that were offered while the line ran, a broken one and an equal one each time."""

    offered: int = 0  # pairs
    refused: int = 0  # broken ones
    accepted: int = 0  # equal ones
    wrongly_accepted: int = 0
    wrongly_refused: int = 0
    reason: str = ""  # of the last refusal


@dataclasses.dataclass
class SoakOutcome:
    """What a run has found so far."""

    options: SoakOptions
    answers: AnswerCounts
    samples: Samples
    complete: bool = False
    signal: signal.Signals | None = None  # that ended it early
    drained: bool = False  # all answers came within the time for it
    hung: bool = False  # no answer came for too long
    seconds: float = 0.0
    swaps: Swaps = dataclasses.field(default_factory=Swaps)
    health: Health = dataclasses.field(init=False)  # of the closed line
    warm: int | None = None  # the first sample that counts


def document(outcome: SoakOutcome, predictor: Predictor, heap: str) -> dict[str, Any]:
    """The report, plain JSON values.

    `trends` has for each quantity its slopes per 1,000 frames after the warm-up (see
    `samples.Trend`), and its first and last value, both taken when the line was at rest; null where
    it is not known. `checks` have a name, whether they held (null: not judged) and what was found.
    """
    answers, taken = outcome.answers, outcome.samples.listed()
    counted = [] if outcome.warm is None else taken[outcome.warm :]
    trends = {key: dataclasses.asdict(samples.trend(counted, key)) for key in _QUANTITIES}
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": outcome.complete,
        "signal": outcome.signal.name if outcome.signal else None,
        "environment": {"sprfast": __version__, "python": platform.python_version(), "platform": platform.platform()},
        "model": dataclasses.asdict(outcome.health.model),
        "options": dataclasses.asdict(outcome.options) | {"warm_up": outcome.options.warm_up_frames},
        "threshold": predictor.threshold.value if predictor.threshold else None,
        "seconds": outcome.seconds,
        "frames_per_s": answers.answered / outcome.seconds,
        "ids": answers.totals() | {"answered": answers.answered, "closed": answers.closed},
        "verdicts": dict(outcome.health.verdicts),
        "faults": {
            str(kind): answers.verdicts[kind] | ({"refused": answers.refused[kind]} if kind in TWICE else {})
            for kind in KINDS
        },
        "callbacks": {str(fault): count for fault, count in answers.callbacks.items()},
        "deadline": answers.deadline,
        "late": answers.late,
        "swaps": dataclasses.asdict(outcome.swaps),
        "batches": outcome.health.batches,
        "heap": heap,
        "trends": trends,
        "trends_reason": samples.unavailable(),
        "samples": [dataclasses.asdict(sample) for sample in taken],
        "checks": [
            {"name": name, "passed": passed, "found": found}
            for name, passed, found in (*_answers(outcome), *_course(outcome), *_resources(outcome, trends))
        ],
        "examples": list(answers.examples),
    }


def failures(report: dict[str, Any]) -> list[str]:
    """A sentence for each check that did not hold."""
    return [f"{check['name']}: {check['found']}" for check in report["checks"] if check["passed"] is False]


def exit_code(report: dict[str, Any]) -> int:
    """128 + n after signal n, else 1 if a check did not hold, else 0."""
    return 128 + signal.Signals[report["signal"]] if report["signal"] else int(bool(failures(report)))


def table(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal; fits 80 columns."""
    ids, options, model = report["ids"], report["options"], report["model"]
    unfinished = "" if report["complete"] else f", INCOMPLETE ({report['signal'] or 'see the checks'})"
    title = f"{ids['answered']} frames, {report['frames_per_s']:.4g} a second{unfinished}"
    trends = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1))
    trends.add_column("after the warm-up", no_wrap=True)
    for heading in ("first", "last", "a 1,000\nframes", "standard\nerror", "median\nslope"):
        trends.add_column(heading, justify="right", no_wrap=True)
    for key, heading in _QUANTITIES.items():
        row = report["trends"][key]
        names = ("first", "last", "slope", "standard_error", "median_slope")
        trends.add_row(heading, *(_cell(row[name]) for name in names))
    checks = Table("", "", "", box=None, show_header=False, padding=(0, 1))
    for check in report["checks"]:
        word = {True: "held", False: "FAILED", None: "not judged"}[check["passed"]]
        checks.add_row(word, check["name"], check["found"])
    notes = (
        f"model {model['sha256'][:12]}, backend {model['backend']}, {model['precision']}; {options['producers']} "
        f"producers, warm-up {options['warm_up']} frames, {report['batches']} batches, heap {report['heap']}",
        *report["examples"],
    )
    return Group(trends, checks, *notes)


def _answers(outcome: SoakOutcome) -> Iterator[Check]:
    answers, wrong = outcome.answers, outcome.answers.wrong
    ids = answers.totals()
    others = wrong["mixed up"] + wrong["unknown"]
    once = not (ids["taken_twice"] or ids["unanswered"] or ids["answered_twice"] or others)
    numbers = f"{ids['taken']} taken; {ids['unanswered']} not answered, {ids['answered_twice']} answered again"
    numbers += f", {ids['taken_twice']} taken again, {others} answers to another id"
    yield "every id is answered once", once, numbers
    in_time = not (wrong["late"] or wrong["late passes"])
    if in_time and answers.answered >= LATE_JUDGED:
        in_time = answers.late <= LATE_LIMIT * answers.answered
    hung = f"{sum(answers.callbacks.values())} callbacks raised, hung or exited"
    found = f"{wrong['late']} answers and {wrong['late passes']} PASS came after {answers.deadline:.3g} s"
    yield "answers come by their deadline", in_time, f"{found}; {answers.late} were ERROR for it; {hung}"
    spoilt = sum(sum(answers.verdicts[kind].values()) for kind in KINDS if error_of(kind))
    missed = f"{wrong['passed']} passed, {wrong['not noticed']} had another answer than their ERROR"
    yield "no fault passes", not (wrong["passed"] or wrong["not noticed"]), f"{spoilt} faults; {missed}"
    good = sum(sum(verdicts.values()) for kind, verdicts in answers.verdicts.items() if not error_of(kind))
    unlike = f"{wrong['scores']} scores and {wrong['verdicts']} verdicts are others"
    differ = f"{good} good frames; {unlike}, relative tolerance {answers.tolerance:g}"
    yield "good frames score as they do alone", not (wrong["scores"] or wrong["verdicts"]), differ
    again = sum(answers.refused.values())
    refusals = f"{again} ids that came again and {answers.closed} after the end were refused, {wrong['refused']} others"
    yield "what is refused is accounted for", not wrong["refused"], refusals
    yield _counts(outcome, again + answers.closed + wrong["refused"], ids["taken"])
    swaps = outcome.swaps
    right = swaps.refused == swaps.accepted == swaps.offered == outcome.health.swaps
    broken = f"{swaps.refused} of {swaps.offered} broken models refused"
    yield "models are swapped", right, f"{broken}, {swaps.accepted} equal ones accepted; last reason: {swaps.reason}"


def _counts(outcome: SoakOutcome, refused: int, taken: int) -> Check:
    health, answers = outcome.health, outcome.answers
    told = (health.taken, health.refused, sum(health.verdicts.values()), health.callback_failures, health.unanswered)
    seen = (taken, refused, taken, answers.failed_callbacks, 0)
    named = "taken, refused, answered, failed callbacks, unanswered"
    return "the line counts right", told == seen, f"{named}: {told}" + ("" if told == seen else f", expected {seen}")


def _course(outcome: SoakOutcome) -> Iterator[Check]:
    if outcome.options.faults and outcome.complete:
        missing = [str(kind) for kind in KINDS if not sum(outcome.answers.verdicts[kind].values())]
        but = f", but not {', '.join(missing)}" if missing else ""
        yield "every kind of fault occurs", not missing, f"{len(KINDS)} kinds{but}"
    found = f"{'' if outcome.drained else 'not '}all was answered in time"
    if outcome.hung:
        found = "no answer for too long"
    yield "the line does not hang", outcome.drained and not outcome.hung, found


def _resources(outcome: SoakOutcome, trends: dict[str, dict[str, float | None]]) -> Iterator[Check]:
    yield memory_check(trends["memory_kb"], outcome.answers.answered - outcome.options.warm_up_frames)
    for key in ("threads", "python_threads", "descriptors"):
        first, last = trends[key]["first"], trends[key]["last"]
        held, told = None, "not known"
        if outcome.complete and first is not None and last is not None:
            held, told = last <= first, f"{last - first:+g} since the warm-up"
        yield f"{_QUANTITIES[key]} do not grow", held, told


def memory_check(memory: dict[str, float | None], frames: int) -> Check:
    """That memory does not grow, by its trend over so many frames after the warm-up."""
    growth, held, told = memory["median_slope"], None, "not known"
    if growth is not None:
        fitted = f"by least squares {memory['slope']:.3g}, standard error {memory['standard_error']:.2g}"
        told = f"{growth:.3g} KB per 1,000 frames, limit {MEMORY_LIMIT:g}; {fitted}"
    if growth is not None and frames >= JUDGED:
        held = growth <= MEMORY_LIMIT
    elif memory["first"] is not None:
        told += f"; judged from {JUDGED:,} frames after the warm-up, not from {max(0, frames):,}"
    return "memory does not grow", held, told


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
