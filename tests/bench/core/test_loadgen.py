"""Our scenarios against MLPerf's own LoadGen: queries, counts, percentiles and verdicts."""

import itertools
import json
import queue
import threading
import time

import pytest

from sprfast.bench.core import arrivals, scenarios

loadgen = pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
SAMPLES = 5


class _Run:
    """One run of LoadGen's performance mode: its log, and the latencies of its trace in seconds."""

    def __init__(self, folder, scenario, answer, *, queries, **settings):
        self.sizes = []  # samples of every query
        given = loadgen.TestSettings()
        given.scenario = getattr(loadgen.TestScenario, scenario)
        given.mode = loadgen.TestMode.PerformanceOnly
        given.min_duration_ms, given.min_query_count = 0, queries
        for name, value in settings.items():
            setattr(given, name, value)
        waiting = queue.SimpleQueue()
        server = threading.Thread(target=self._serve, args=(waiting, answer))
        server.start()
        logs, output = loadgen.LogSettings(), loadgen.LogOutputSettings()
        output.outdir, logs.enable_trace = str(folder), True
        logs.log_output = output
        library = loadgen.ConstructQSL(SAMPLES, SAMPLES, lambda indices: None, lambda indices: None)
        system = loadgen.ConstructFastSUT(lambda ids, indices: waiting.put((ids, indices)), lambda: None)
        loadgen.StartTestWithLogSettings(system, library, given, logs, str(folder / "audit.config"))
        loadgen.DestroyFastSUT(system)
        loadgen.DestroyQSL(library)
        waiting.put(None)
        server.join()
        entries = [json.loads(line.partition(" ")[2]) for line in (folder / "mlperf_log_detail.txt").open()]
        self.log = {entry["key"]: entry["value"] for entry in entries}
        trace = [line.rstrip(",\n") for line in (folder / "mlperf_log_trace.json").open()]
        starts = [json.loads(line) for line in trace if line.startswith('{"name":"Sample","cat":"default","ph":"b",')]
        found = {each["args"]["sample_seq"]: each["args"] for each in starts}
        each = self.sizes[0]  # all samples of a query are completed at once
        ends = [1e-9 * found[seq]["complete_ns"] for seq in sorted(found)][::each]
        issued = [1e-9 * found[seq]["issue_start_ns"] for seq in sorted(found)][::each]
        self.latencies = [end - start for start, end in zip(issued, ends, strict=True)]

    def _serve(self, waiting, answer):
        for ids, indices in iter(waiting.get, None):
            self.sizes.append(len(indices))
            answer(indices)
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(each, 0, 0) for each in ids])


def _sleeping(seconds):
    return lambda indices: time.sleep(seconds)


@pytest.mark.parametrize("scenario", [scenarios.SINGLE_STREAM, scenarios.MULTI_STREAM], ids=lambda each: each.name)
def test_latencies_of_queries_one_after_another(scenario, tmp_path):
    turn = itertools.count()
    run = _Run(tmp_path, scenario.name, lambda indices: time.sleep(3e-4 + 1e-5 * (37 * next(turn) % 130)), queries=130)
    assert set(run.sizes) == {len(scenario.query(SAMPLES, 0))}
    ours = scenario.figures(run.latencies, SAMPLES)
    assert run.log["result_query_count"] == ours["queries"] == len(run.sizes) == 130
    assert ours["max_ms"] == pytest.approx(1e-6 * run.log["result_max_latency_ns"])
    ordered = sorted(1e3 * value for value in run.latencies)
    for q in (50, 90, 99):
        assert _beside(ordered, ours[f"p{q}_ms"], run.log[f"result_{q}.00_percentile_latency_ns"])
    # Early stopping: too few queries for the 99th percentile, enough for the 90th.
    assert ours["p99_early_stopping_ms"] is None
    assert run.log["early_stopping_latency_ms"] == 0
    if scenario is scenarios.SINGLE_STREAM:
        assert _beside(ordered, ours["p90_early_stopping_ms"], run.log["early_stopping_latency_ss"])


def _beside(ordered, ours, nanoseconds):
    """LoadGen's figure is ours or the next latency: its percentile of n has rank floor(q n) + 1,
    ours ceil(q n).
    """
    rank = ordered.index(ours)
    return any(1e-6 * nanoseconds == pytest.approx(value, abs=5e-6) for value in ordered[rank : rank + 2])


def test_offline_is_one_query_of_all_samples(tmp_path):
    run = _Run(tmp_path, "Offline", _sleeping(2e-2), queries=SAMPLES)
    assert run.sizes == [len(scenarios.OFFLINE.query(SAMPLES, 0))] == [SAMPLES]
    ours = scenarios.OFFLINE.figures(run.latencies, SAMPLES)
    assert run.log["result_samples_per_second"] == pytest.approx(ours["images_per_s"], rel=0.02)


@pytest.mark.clock
@pytest.mark.parametrize(("rate", "holds"), [(30.0, True), (200.0, False)])
def test_server_holds_the_same_rates(rate, holds, tmp_path, monkeypatch):
    """A query takes the system 10 ms: 100 a second at the most; the bound is 80 ms."""
    run = _Run(
        tmp_path, "Server", _sleeping(0.01), queries=60, server_target_qps=rate, server_target_latency_ns=80_000_000
    )
    assert bool(run.log["result_perf_constraints_met"]) is holds
    monkeypatch.setattr(arrivals, "highest_rate", lambda holds, start: holds(start))  # the first trial alone
    tried = arrivals.server(_sleeping(0.01), arrivals.WallClock(), bound=0.08, start=rate, seconds=0.1, most=1)
    assert tried["trials"][0]["valid"] is holds
