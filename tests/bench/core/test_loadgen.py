import functools
import importlib.util
import json
import os
import signal
import sys
import tempfile
import threading
import time

import pytest
import torch

from sprfast.bench.core import arrivals, loadgen, scenarios

CPU = torch.device("cpu")
CLOCK = arrivals.WallClock()

needs_loadgen = pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is not installed"
)


def _system(seconds, seen=None):
    """Takes exactly so long for every call, whatever the machine."""

    def answer(indices):
        end = CLOCK.now() + seconds
        if seen is not None:
            seen.append(list(indices))
        CLOCK.sleep_until(end)

    return answer


def _threads():
    """Of the process, not only those that Python knows of."""
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else threading.active_count()


def _left(before):
    """Threads more than `before`; one that has been joined may need a moment to disappear."""
    end = time.perf_counter() + 5.0
    while _threads() > before and time.perf_counter() < end:
        time.sleep(0.001)
    return _threads() - before


def test_without_loadgen_the_reason_names_what_to_install(monkeypatch):
    assert (loadgen.unavailable() is None) == (importlib.util.find_spec("mlperf_loadgen") is not None)
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'sprfast[bench]'" in loadgen.unavailable()


@needs_loadgen
@pytest.mark.parametrize(
    ("scenario", "keys"),
    [
        (scenarios.SINGLE_STREAM, ["p50_ms", "p90_ms"]),
        (scenarios.MULTI_STREAM, ["p50_ms", "p90_ms"]),
        (scenarios.OFFLINE, ["images_per_s"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_loadgen_and_our_runner_agree_within_3_percent(scenario, keys):
    """A busy machine gets more chances: Offline is the median of the calls in ours, and all samples
    over the whole time in LoadGen.
    """

    def differences():
        rounds = list(scenario.rounds({"system": _system(0.02)}, 10, CPU, 0.5))
        ours = scenario.summary(rounds, "system", "system", 10)
        theirs = loadgen.stream(scenario, _system(0.02), 10, 0.5)
        return [abs(theirs[key] / ours[key] - 1) for key in keys]

    assert any(max(differences()) < 0.03 for _ in range(5))


@needs_loadgen
@pytest.mark.parametrize("scenario", scenarios.ALL, ids=lambda scenario: scenario.name)
def test_figures_have_the_keys_of_our_runner_and_are_plain(scenario):
    figures = loadgen.stream(scenario, _system(0.002), 5, 0.3)
    ours = scenario.summary([{"system": 0.02}] * 3, "system", "other", 5)
    assert set(figures) | {"ratio_to_other"} == set(ours) | {"note"}
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["rounds"] is False
    assert len(figures["seconds"]) == figures["queries"] >= 3
    assert all(0.002 <= value < 1 for value in figures["seconds"])
    assert "0.3 s" in figures["note"]
    assert "VALID" in figures["note"]


@needs_loadgen
def test_seconds_are_what_loadgen_took_its_percentiles_from():
    figures = loadgen.stream(scenarios.SINGLE_STREAM, _system(0.002), 5, 0.3)
    ordered = [1e3 * value for value in sorted(figures["seconds"])]
    assert figures["min_ms"] == pytest.approx(ordered[0])
    assert figures["max_ms"] == pytest.approx(ordered[-1])
    assert [figures[f"p{q}_ms"] for q in (50, 90, 99)] == pytest.approx(
        [ordered[int(len(ordered) * q / 100)] for q in (50, 90, 99)]
    )
    assert figures["p90_ms"] <= figures["p90_early_stopping_ms"] <= figures["max_ms"]
    assert figures["p99_early_stopping_ms"] is None
    offline = loadgen.stream(scenarios.OFFLINE, _system(0.02), 5, 0.2)
    assert offline["images_per_s"] == pytest.approx(5 * offline["queries"] / sum(offline["seconds"]), rel=1e-4)


@needs_loadgen
@pytest.mark.parametrize("samples", [1, 3, 11])
def test_queries_are_made_of_the_samples(samples):
    sizes = {scenarios.SINGLE_STREAM: 1, scenarios.MULTI_STREAM: 8, scenarios.OFFLINE: samples}
    for scenario, size in sizes.items():
        seen = []
        figures = loadgen.stream(scenario, _system(0.001, seen), samples, 0.02)
        run = seen[loadgen.PROBES :]
        assert len(run) == figures["queries"]
        assert {len(query) for query in run} == {size}
        assert {index for query in run for index in query} <= set(range(samples))
        if scenario is scenarios.OFFLINE:
            assert all(sorted(query) == list(range(samples)) for query in run)


@needs_loadgen
def test_a_slow_system_still_gets_the_least_queries():
    figures = loadgen.stream(scenarios.SINGLE_STREAM, _system(0.05), 2, 0.01)
    assert figures["queries"] == 3
    assert figures["p90_early_stopping_ms"] is None
    assert "INVALID (early stopping not satisfied)" in figures["note"]


@needs_loadgen
def test_nothing_is_printed_and_nothing_is_left(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    threads = _threads()
    for scenario in scenarios.ALL:
        loadgen.stream(scenario, _system(0.002), 4, 0.02)
    loadgen.server(_system(0.001), 4, bound=0.01, start=800.0, seconds=0.02, most=1)
    assert list(tmp_path.iterdir()) == []
    assert _left(threads) <= 0
    assert capfd.readouterr() == ("", "")
    handler = signal.getsignal(signal.SIGINT)
    assert handler is signal.default_int_handler


@needs_loadgen
def test_an_audit_config_in_the_working_directory_is_not_obeyed(monkeypatch, tmp_path):
    (tmp_path / "audit.config").write_text("*.*.mode = 1\n*.*.min_query_count = 77\n")
    monkeypatch.chdir(tmp_path)
    assert loadgen.stream(scenarios.SINGLE_STREAM, _system(0.01), 4, 0.02)["queries"] < 10


def _failing(after, error):
    """A system whose call number `after`, counted from 0, raises."""
    count = iter(range(sys.maxsize))
    system = _system(0.002)

    def answer(indices):
        if next(count) == after:
            raise error
        system(indices)

    return answer


@needs_loadgen
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["ValueError", "KeyboardInterrupt"])
def test_an_error_of_the_system_ends_the_run_and_surfaces(error):
    threads, started = _threads(), time.perf_counter()
    for scenario in scenarios.ALL:
        for after in (0, loadgen.PROBES + 1):
            with pytest.raises(type(error)) as caught:
                loadgen.stream(scenario, _failing(after, error), 4, 10.0)
            assert caught.value is error
    assert time.perf_counter() - started < 9.0
    with pytest.raises(type(error)) as caught:
        loadgen.server(_failing(5, error), 4, bound=0.02, start=200.0, seconds=0.2, most=4)
    assert caught.value is error
    assert _left(threads) <= 0
    assert loadgen.stream(scenarios.SINGLE_STREAM, _system(0.002), 4, 0.02)["queries"] >= 3  # LoadGen is fit for use


@needs_loadgen
@pytest.mark.parametrize(
    "run",
    [
        *(
            functools.partial(lambda scenario, answer: loadgen.stream(scenario, answer, 4, 10.0), each)
            for each in scenarios.ALL
        ),
        lambda answer: loadgen.server(answer, 4, bound=0.05, start=200.0, seconds=0.5, most=1),
    ],
    ids=["SingleStream", "MultiStream", "Offline", "Server"],
)
def test_ctrl_c_ends_a_run_soon(run):
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    started = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(_system(0.002))
    timer.join()
    assert time.perf_counter() - started < 9.0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@needs_loadgen
def test_a_run_outside_of_the_main_thread():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(loadgen.stream(scenarios.SINGLE_STREAM, _system(0.002), 4, 0.02))
    )
    thread.start()
    thread.join()
    assert found[0]["queries"] >= 3


@needs_loadgen
def test_server_finds_a_rate_that_the_system_can_serve():
    """One query at a time, 10 ms each: 100 a second at the most."""
    figures = loadgen.server(_system(0.01), 4, bound=0.05, start=50.0, seconds=0.1, most=1)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert 15 < figures["queries_per_s"] < 150
    assert set(figures) == {"queries_per_s", "bound_ms", "most_in_a_call", "trials", "note"}
    assert all(trial["queries"] >= arrivals.LEAST_QUERIES and trial["p99_ms"] >= 10 for trial in figures["trials"])
    assert all(trial["valid"] == (trial["p99_ms"] <= figures["bound_ms"]) for trial in figures["trials"])
    best = max(trial["queries_per_s"] for trial in figures["trials"] if trial["valid"])
    assert figures["queries_per_s"] == best
    assert "LoadGen" in figures["note"]


@needs_loadgen
def test_server_answers_waiting_queries_together():
    seen = []
    figures = loadgen.server(_system(0.01, seen), 4, bound=0.03, start=200.0, seconds=0.1, most=4)
    sizes = {len(query) for query in seen}
    assert max(sizes) == 4
    assert {index for query in seen for index in query} <= set(range(4))
    assert figures["queries_per_s"] > 100  # more than one at a time could do
    assert sum(len(query) for query in seen) == sum(trial["queries"] for trial in figures["trials"])


@needs_loadgen
def test_server_gives_up_on_a_system_that_is_too_slow():
    figures = loadgen.server(_system(0.002), 1, bound=0.001, start=10000.0, seconds=0.01, most=1)
    assert figures["queries_per_s"] is None
    assert not any(trial["valid"] for trial in figures["trials"])
    assert all(trial["p99_ms"] > 1 for trial in figures["trials"])


@needs_loadgen
def test_version_is_the_package_s():
    assert loadgen.version().split(".")[0].isdigit()
