"""MLPerf's own LoadGen as the driver: it makes the queries, takes the times and computes the
figures, for one system at a time.

Queries are drawn with LoadGen's default seeds, in its performance mode. Its rules for a result (600
s, so many queries) are not asked for: the notes say what it was asked for and whether it calls that
valid.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

from sprfast.bench.core import arrivals, scenarios

Answer = Callable[[Sequence[int]], object]  # given the indices of samples; returns when the device has answered them
Log = dict[str, Any]  # what LoadGen says of a run, by its own keys
PROBES = 3  # calls before a run: LoadGen must be told about how long one takes
# seconds: LoadGen makes all queries before the run, for a system of up to twice the speed it was
# told
LEAST_LATENCY = 1e-4
SLACK = 1.1  # samples of Offline over those that the time should be enough for, as LoadGen has it
_SAMPLE = '{"name":"Sample","cat":"default","ph":"b",'  # start of a line in the trace, which as a whole is not JSON
_CHECKS = {
    "result_perf_constraints_met": "latency bound",
    "result_min_duration_met": "duration",
    "result_min_queries_met": "number of queries",
    "early_stopping_met": "early stopping",
}


def unavailable() -> str | None:
    """None where LoadGen is installed, else one sentence: that it is not, and what to install."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        return "MLPerf's LoadGen (mlcommons-loadgen) is not installed here: run pip install 'sprfast[bench]'"
    return None


def version() -> str:
    """Of the LoadGen that is installed."""
    return importlib.metadata.version("mlcommons-loadgen")


def stream(scenario: scenarios.Scenario, answer: Answer, samples: int, seconds: float) -> dict[str, Any]:
    """Measure one system in SingleStream, MultiStream or Offline.

    Offline is one query of LoadGen's with many samples, answered `samples` at a time; each such
    call counts as a query in what is returned. Ctrl-C ends the run after a moment.

    Args:
        scenario: one of `scenarios.ALL`.
        answer: the system, called on the caller's thread. Called `PROBES` times before the run.
        samples: how many there are; indices are below it.
        seconds: LoadGen's minimum duration; `scenario.minimum_rounds` queries are made whatever
            they cost.

    Returns:
        The keys of `scenarios.Scenario.summary` without a ratio. Figures are those that LoadGen
        reports, `seconds` comes from its trace, `note` has its verdict.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Exception: whatever `answer` raised.
    """
    each = samples if scenario is scenarios.OFFLINE else len(scenario.query(samples, 0))
    latency = max(LEAST_LATENCY, min(_probe(scenario, answer, samples, index) for index in range(PROBES)))
    calls = max(scenario.minimum_rounds, math.floor(SLACK * seconds / latency) + 1)  # of Offline
    settings = _settings(scenario.name, seconds)
    settings.min_query_count = calls * samples if scenario is scenarios.OFFLINE else scenario.minimum_rounds
    settings.offline_expected_qps = samples / latency
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = 1e9 * latency
    settings.multi_stream_samples_per_query = scenarios.MULTI_STREAM_SAMPLES
    system = _System(answer)

    def issue(ids: list[int], indices: list[int]) -> None:
        for first in range(0, len(ids), each):
            system(ids[first : first + each], indices[first : first + each])

    with _interruptible(system):
        log, completed = _run(settings, issue, samples, each)
    if scenario is scenarios.OFFLINE:
        return _throughput(
            log, [after - before for before, after in itertools.pairwise([0.0, *completed])], samples, seconds
        )
    return _latency(log, completed, scenario, seconds)


def server(answer: Answer, samples: int, *, bound: float, start: float, seconds: float, most: int) -> dict[str, Any]:
    """The highest target rate at which LoadGen finds 99 % of the queries answered within `bound`.

    Searched as in `arrivals.server`, every trial a run of LoadGen's Server scenario. Queries that
    wait are answered together. LoadGen cannot be stopped within a trial: after Ctrl-C, or an
    exception in `answer`, the queries that are still to come in this trial are made but not
    answered.

    Args:
        answer: the system, called on the caller's thread.
        samples: how many there are; indices are below it.
        bound: seconds.
        start: queries a second that the search begins with.
        seconds: of one trial, at least `arrivals.LEAST_BOUNDS` latency bounds; at least
            `arrivals.LEAST_QUERIES` queries are made.
        most: queries that the system answers in one call.

    Returns:
        The keys of `arrivals.server`; `note` also has LoadGen's verdict on the rate that was found.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Exception: whatever `answer` raised.
    """
    trials: list[dict[str, Any]] = []
    verdicts: dict[float, str] = {}
    seconds = max(seconds, arrivals.LEAST_BOUNDS * bound)

    def holds(rate: float) -> bool:
        settings = _settings("Server", seconds)
        settings.min_query_count = arrivals.LEAST_QUERIES
        settings.server_target_qps, settings.server_target_latency_ns = rate, round(1e9 * bound)
        log = _serve(settings, answer, samples, most)
        queries, p99_ms = log["result_query_count"], 1e-6 * log["result_99.00_percentile_latency_ns"]
        valid = bool(log["result_perf_constraints_met"])
        trials.append({"queries_per_s": rate, "queries": queries, "p99_ms": p99_ms, "valid": valid})
        verdicts[rate] = _verdict(log, seconds, arrivals.LEAST_QUERIES)
        return valid

    rate = arrivals.highest_rate(holds, start)
    few = min(trial["queries"] for trial in trials)
    note = f"at least {few} queries a trial" + ("; up to 100 the p99 is the slowest" if few <= 100 else "")
    note += "" if rate is None else f"; {verdicts[rate]}"
    return {"queries_per_s": rate, "bound_ms": 1e3 * bound, "most_in_a_call": most, "trials": trials, "note": note}


class _System:
    """Answers queries and tells LoadGen so. An exception in LoadGen would abort the process, so it
    is kept in `error`.
    """

    def __init__(self, answer: Answer) -> None:
        import mlperf_loadgen

        self._loadgen, self._answer = mlperf_loadgen, answer
        self._inside = False  # `answer` is running
        self.error: BaseException | None = None  # after which nothing is answered any more

    def __call__(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        if self.error is None:
            try:
                self._inside = True
                try:
                    self._answer(indices)
                finally:
                    self._inside = False
            except BaseException as error:
                self.error = error
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(each, 0, 0) for each in ids])

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Handler of SIGINT: raises only where the exception cannot get into LoadGen."""
        if self._inside:
            self._inside = False
            raise KeyboardInterrupt
        self.error = KeyboardInterrupt()


@contextlib.contextmanager
def _interruptible(system: _System) -> Iterator[None]:
    """Let the system have SIGINT, which comes to the main thread only; raise its error
    afterwards.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, system.interrupt) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    if system.error is not None:
        raise system.error


def _probe(scenario: scenarios.Scenario, answer: Answer, samples: int, index: int) -> float:
    started = time.perf_counter()
    answer(scenario.query(samples, index))
    return time.perf_counter() - started


def _settings(scenario: str, seconds: float) -> Any:
    import mlperf_loadgen

    settings = mlperf_loadgen.TestSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = math.ceil(1e3 * seconds)
    return settings


def _serve(settings: Any, answer: Answer, samples: int, most: int) -> Log:
    """One run in Server: LoadGen issues on a thread of its own, the caller's thread answers."""
    waiting: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()

    def issue(ids: list[int], indices: list[int]) -> None:
        for query in zip(ids, indices, strict=True):
            waiting.put(query)

    system = _System(answer)
    with _interruptible(system), ThreadPoolExecutor(1) as pool:
        run = pool.submit(_run, settings, issue, samples)
        run.add_done_callback(lambda _: waiting.put(None))  # not before every query has been completed
        for first in iter(waiting.get, None):
            taken = [first]
            while len(taken) < most and not waiting.empty():
                taken.append(waiting.get())  # type: ignore[arg-type]
            ids, indices = zip(*taken, strict=True)
            system(ids, indices)
        return run.result()[0]


def _run(
    settings: Any, issue: Callable[[list[int], list[int]], None], samples: int, each: int | None = None
) -> tuple[Log, list[float]]:
    """One run of LoadGen, without a word and without leaving a file.

    Args:
        issue: given the ids and the indices of a query's samples; must not raise.
        each: samples of a call of the system; None where the times of the calls are not wanted.

    Returns:
        What LoadGen says, and in seconds from the start of its query the end of each call.
    """
    import mlperf_loadgen

    with tempfile.TemporaryDirectory(prefix="sprfast-loadgen-") as folder:
        logs = mlperf_loadgen.LogSettings()
        output = mlperf_loadgen.LogOutputSettings()
        output.outdir = folder
        logs.log_output, logs.enable_trace = output, each is not None
        library = mlperf_loadgen.ConstructQSL(samples, samples, lambda indices: None, lambda indices: None)
        system = mlperf_loadgen.ConstructFastSUT(issue, lambda: None)
        try:
            # By default it would obey an audit.config in the working directory.
            mlperf_loadgen.StartTestWithLogSettings(system, library, settings, logs, str(Path(folder, "audit.config")))
        finally:
            mlperf_loadgen.DestroyFastSUT(system)
            mlperf_loadgen.DestroyQSL(library)
        completed = [] if each is None else _completed(Path(folder, "mlperf_log_trace.json"), each)
        return _log(Path(folder, "mlperf_log_detail.txt")), completed


def _log(path: Path) -> Log:
    entries = [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()]  # after ":::MLLOG"
    return {entry["key"]: entry["value"] for entry in entries}


def _completed(path: Path, each: int) -> list[float]:
    ends: dict[int, int] = {}
    with path.open() as lines:
        for line in lines:
            if line.startswith(_SAMPLE):
                sample = json.loads(line.rstrip(",\n"))["args"]
                ends[sample["sample_seq"] // each] = sample["complete_ns"]  # the same for all samples of a call
    return [1e-9 * ends[call] for call in sorted(ends)]


def _latency(log: Log, seconds: list[float], scenario: scenarios.Scenario, least: float) -> dict[str, Any]:
    """All samples of a query are completed at once, so LoadGen's latencies of samples are those of
    queries.
    """
    figures: dict[str, Any] = {"queries": log["result_query_count"]}
    for q in (50, 90, 99):
        figures[f"p{q}_ms"] = 1e-6 * log[f"result_{q}.00_percentile_latency_ns"]
    for q, key in ((90, "early_stopping_latency_ss"), (99, "early_stopping_latency_ms")):
        figures[f"p{q}_early_stopping_ms"] = 1e-6 * log[key] if log.get(key) else None  # 0 stands for too few queries
    for end in ("min", "max"):
        figures[f"{end}_ms"] = 1e-6 * log[f"result_{end}_latency_ns"]
    return figures | {"note": _verdict(log, least, scenario.minimum_rounds), "seconds": seconds, "rounds": False}


def _throughput(log: Log, seconds: list[float], samples: int, least: float) -> dict[str, Any]:
    return {
        "queries": len(seconds),
        "samples_per_query": samples,
        "images_per_s": log["result_samples_per_second"],
        "min_images_per_s": samples / max(seconds),
        "max_images_per_s": samples / min(seconds),
        "note": f"one query of {len(seconds) * samples} samples, answered {samples} at a time; "
        f"{_verdict(log, least, 1)}",
        "seconds": seconds,
        "rounds": False,
    }


def _verdict(log: Log, seconds: float, queries: int) -> str:
    """What LoadGen was asked for, whether it calls the run valid, and if that is for its early
    stopping, in its own words why.
    """
    unmet = [name for key, name in _CHECKS.items() if not log.get(key, True)]
    text = (
        f"LoadGen, asked for at least {seconds:.3g} s and {queries} {'queries' if queries > 1 else 'query'}: "
        f"{log['result_validity']}"
    )
    text += f" ({', '.join(unmet)} not satisfied)" if unmet else ""
    if log["early_stopping_met"]:
        return text
    points = [
        " ".join(point.split()).rstrip(".") for point in log["early_stopping_result"].split(" * ") if point.strip()
    ]
    return f"{text}: {', '.join(points)}"
