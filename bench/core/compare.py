"""Two bench reports of the same work: the speed of the new one relative to the old one, with an
interval, and what got worse.

The two runs are separate, and machines drift between runs. So what is compared is a candidate's
speed relative to the report's baseline within each round, where both took turns; only where there
is no such pair are the times themselves shown, and no verdict is given, since any drift of the
machine is in them. An interval tells how well the rounds of the two runs fix their medians; it
takes the rounds as independent and cannot see what differs from one run to the next. The allowed
regression is for that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Column, Table

from sprfast.bench.core import scenarios
from sprfast.errors import InputError

RESAMPLES = 4000
CONFIDENCE = 0.95
# of a bootstrap: with fewer, its percentiles are the extremes of the run, too narrow for the
# confidence
FEWEST_ROUNDS = 5

Array = npt.NDArray[np.float64]

_SCENARIOS = {scenario.key: scenario.name for scenario in scenarios.ALL}
# never the same twice; the table tells them apart from what differs
_VOLATILE = ("date_utc", "load_average", "cpu_mhz", "clocks_mhz")


@dataclasses.dataclass(frozen=True)
class ComparisonRow:
    """One candidate in one scenario that both reports measured; 1.0 is as fast as before, 0.85 is
    15 % slower.
    """

    candidate: str
    scenario: str  # its key in a report
    basis: str  # "paired": relative to the baseline within each round; "absolute": the times themselves
    baseline: bool  # whether this is the baseline itself, which is never a regression
    interval: str  # "bootstrap": ratio of the medians with percentiles; "student": with few rounds, see `_student`
    speed: float
    low: float | None  # None where one round each leaves the interval unknown
    high: float | None
    rounds_old: int
    rounds_new: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    regression: float
    seed: int
    runs: list[str]  # date and load of the old run and of the new one
    rows: list[ComparisonRow]
    regressions: list[str]  # a sentence for all that got worse, and for what cannot be told
    differences: list[str]  # machine, versions, model, candidates: what is not as it was

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, none of them NaN or infinite."""
        return {"confidence": CONFIDENCE, "resamples": RESAMPLES, **dataclasses.asdict(self)}

    def table(self) -> Table:
        """For a terminal, one line a candidate and scenario; fits 80 columns."""
        notes = [*self.runs, *(f"differs: {each}" for each in self.differences)]
        if any(row.interval == "student" for row in self.rows):
            notes.append(f"(in brackets): by Student's t, as a run has fewer than {FEWEST_ROUNDS} rounds")
        if any(row.basis == "absolute" for row in self.rows):
            notes.append("baseline, absolute: by the times themselves, with any drift of the machine between the runs")
        verdict = self.regressions or [f"No regression beyond {self.regression:.3g}."]
        figures = ("speed", f"{CONFIDENCE:.0%}\ninterval", "rounds\nold/new")
        result = Table(
            Column("candidate", overflow="fold"),
            Column("scenario", no_wrap=True),
            *(Column(heading, justify="right", no_wrap=True) for heading in figures),
            "remark",
            title="speed of the new report relative to the old one",
            caption="\n".join([*notes, *verdict]),
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for row in self.rows:
            limits = "unknown" if row.low is None or row.high is None else f"{_short(row.low)}-{_short(row.high)}"
            interval = limits if row.interval == "bootstrap" else f"({limits})"
            words = ["REGRESSION"] if _regressed(row, self.regression) else []
            if row.basis == "absolute":
                words.append("baseline" if row.baseline else "absolute")
            counts, remark = f"{row.rounds_old}/{row.rounds_new}", "\n".join(words)
            result.add_row(row.candidate, _SCENARIOS[row.scenario], _short(row.speed), interval, counts, remark)
        return result


def compare(old: dict[str, Any], new: dict[str, Any], *, regression: float, seed: int = 0) -> Comparison:
    """Compare all that both reports measured.

    Args:
        old, new: reports of the same work as `cases.run` returns and `report_file.load` reads.
        regression: the loss of speed that is allowed, at least 0 and below 1. A candidate is a
            regression where the whole interval lies below 1 - regression.
        seed: of the bootstrap.

    Raises:
        InputError: the reports measured different work, or nothing that both measured, or not
            the baseline, without which nothing can be told; or `regression` is out of range.
    """
    if not 0 <= regression < 1:
        raise InputError(f"regression: {regression} is not allowed, expected a number from 0 to below 1")
    _check_same_work(old, new)
    generator = np.random.default_rng(seed)
    both = [name for name in old["candidates"] if name in new["candidates"]]
    rows = [
        _row(old, new, name, key, generator) for name in both for key in _SCENARIOS if _measured((old, new), name, key)
    ]
    slower = [_sentence(row, regression) for row in rows if _regressed(row, regression)]
    alone = [row for row in rows if row.basis == "absolute" and not row.baseline]
    regressions = [*slower, *_lost(old, new)]
    if alone and not regressions:
        if not any(row.basis == "paired" for row in rows):
            raise InputError(
                f"{old['baseline']}: was not measured in both reports, and without the baseline a regression cannot be "
                f"told from a drift of the machine between the runs; measure both with --candidates {old['baseline']},"
                f"{alone[0].candidate}"
            )
        names = ", ".join(dict.fromkeys(_SCENARIOS[row.scenario] for row in alone))
        regressions = [f"{names}: cannot be told, the baseline was not measured in both reports."]
    if not rows and not regressions:
        raise InputError(
            "no candidate was measured in both reports; compare reports of `sprfast bench` with candidates in common"
        )
    runs = [f"{which}: {_run(report)}" for which, report in (("old", old), ("new", new))]
    return Comparison(regression, seed, runs, rows, regressions, _differences(old, new))


def _row(
    old: dict[str, Any], new: dict[str, Any], name: str, key: str, generator: np.random.Generator
) -> ComparisonRow:
    baseline = old["baseline"]
    paired = name != baseline and _measured((old, new), baseline, key)
    before, after = (_speeds(report, name, key, paired) for report in (old, new))
    few = min(len(before), len(after)) < FEWEST_ROUNDS
    found = _student(before, after) if few else _bootstrap(before, after, generator)
    basis, interval = "paired" if paired else "absolute", "student" if few else "bootstrap"
    return ComparisonRow(name, key, basis, name == baseline, interval, *found, len(before), len(after))


def _measured(reports: tuple[dict[str, Any], ...], name: str, key: str) -> bool:
    return all(name in report["candidates"] and report["candidates"][name][key] is not None for report in reports)


def _speeds(report: dict[str, Any], name: str, key: str, paired: bool) -> Array:
    """Speed in every round: relative to the baseline's if paired, else queries a second."""
    seconds = np.array(report["candidates"][name][key]["seconds"])
    reference = np.array(report["candidates"][report["baseline"]][key]["seconds"]) if paired else 1.0
    return reference / seconds


def _student(before: Array, after: Array) -> tuple[float, float | None, float | None]:
    """Ratio of the geometric means and Student's interval, for lognormal samples with the same
    spread in both runs.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    logs = np.log(before), np.log(after)
    centre = logs[1].mean() - logs[0].mean()
    degrees = len(before) + len(after) - 2
    if degrees == 0:
        return float(np.exp(centre)), None, None
    variance = sum(((each - each.mean()) ** 2).sum() for each in logs) / degrees
    half = t.ppf((1 + CONFIDENCE) / 2, degrees) * math.sqrt(variance * (1 / len(before) + 1 / len(after)))
    speed, low, high = np.exp(np.clip([centre, centre - half, centre + half], -99, 99))  # finite whatever the times
    return float(speed), float(low), float(high)


def _bootstrap(before: Array, after: Array, generator: np.random.Generator) -> tuple[float, float, float]:
    """Ratio of the medians and percentile interval; the rounds of each run are drawn with
    replacement.
    """
    ratios = _resampled_medians(after, generator) / _resampled_medians(before, generator)
    low, high = np.quantile(ratios, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(np.median(after) / np.median(before)), float(low), float(high)


def _resampled_medians(samples: Array, generator: np.random.Generator) -> Array:
    """(RESAMPLES,) medians of as many draws, with replacement, as there are samples.

    Drawn from their exact distribution instead of one by one, as a run may have a hundred thousand
    rounds: a draw is the sample of rank floor(n u) with u uniform, the k-th smallest of n uniforms
    is Beta(k, n + 1 - k), and the next above it is the smallest of n - k uniforms on what is left.
    """
    n = len(samples)
    k = (n + 1) // 2
    lower = generator.beta(k, n + 1 - k, RESAMPLES)
    upper = lower if n % 2 else lower + (1 - lower) * generator.beta(1, n - k, RESAMPLES)
    ranks = np.minimum((n * np.stack((lower, upper))).astype(np.int64), n - 1)  # n u may round up to n
    medians: Array = np.sort(samples)[ranks].mean(axis=0)
    return medians


def _regressed(row: ComparisonRow, regression: float) -> bool:
    return row.basis == "paired" and row.high is not None and row.high < 1 - regression


def _short(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.3g}"


def _sentence(row: ComparisonRow, regression: float) -> str:
    interval = f"{CONFIDENCE:.0%} interval {row.low:.3f} to {row.high:.3f}"
    found = f"{row.speed:.3f} of the old speed ({interval}, {row.rounds_old} and {row.rounds_new} rounds)"
    return f"{row.candidate}, {_SCENARIOS[row.scenario]}: {found}, below the allowed {1 - regression:.3g}."


def _lost(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Sentences on what the old report has and the new one has not, and on reports that are
    incomplete.
    """
    found = []
    for which, report in (("old", old), ("new", new)):
        if not report["complete"]:
            found.append(f"The {which} report is incomplete: its run was interrupted.")
    for name, before in old["candidates"].items():
        after = new["candidates"].get(name)
        if after is None:
            if before["status"] == "measured":
                found.append(f"{name}: measured in the old report, missing from the new one.")
            continue
        passed, failing = not _failing(before) and before["parity"] is not None, _failing(after)
        if passed and failing:
            found.append(f"{name}: parity passed in the old report and fails in the new one ({', '.join(failing)}).")
        elif before["status"] == "measured" != after["status"]:
            found.append(f"{name}: measured in the old report, {after['status']} in the new one.")
        else:
            gone = [title for key, title in _SCENARIOS.items() if before[key] is not None and after[key] is None]
            found += [f"{name}, {title}: measured in the old report, not in the new one." for title in gone]
    return found


def _failing(entry: dict[str, Any]) -> list[str]:
    """Names of the parity checks that did not hold."""
    return [name for name, check in (entry["parity"] or {}).items() if not check["passed"]]


def _check_same_work(old: dict[str, Any], new: dict[str, Any]) -> None:
    before, after = (_work(report) for report in (old, new))
    found = [f"{name} {before[name]} and {after[name]}" for name in before if before[name] != after[name]]
    if found:
        raise InputError(
            f"the reports are of different work: {'; '.join(found)}; measure both with the same options and schedule"
        )


def _work(report: dict[str, Any]) -> dict[str, Any]:
    given, model = report["input"], report["model"]
    return {
        "size": f"{given['height']}x{given['width']}",
        "batch": given["samples"],
        "network": model["network"],
        "schedule": model["schedule"],
        "timed": repr(report["timed"]),
        "baseline": report["baseline"],
    }


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    before, after = (
        dict(_circumstances(report, old["candidates"].keys() & new["candidates"])) for report in (old, new)
    )
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    added = [f"{name}: only in the new report" for name in new["candidates"] if name not in old["candidates"]]
    return [*(f"{name}: {before.get(name)} -> {after.get(name)}" for name in changed), *added]


def _circumstances(report: dict[str, Any], candidates: Collection[str]) -> Iterator[tuple[str, Any]]:
    yield from _leaves(report["environment"])
    yield from _leaves({name: report[name] for name in ("device", "input")})
    yield "model sha256", report["model"]["sha256"][:12]
    for name, entry in report["candidates"].items():
        if name in candidates:
            yield from ((f"{name}, {key}", entry[key]) for key in ("precision", "tolerance"))


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if name in _VOLATILE:
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _run(report: dict[str, Any]) -> str:
    environment = report["environment"]
    return f"{environment.get('date_utc')}, load {environment.get('load_average')} at the start"
