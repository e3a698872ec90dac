"""Turns, percentiles and figures of the scenarios."""

import math
import time

import numpy as np
import pytest
import torch

from sprfast.bench.core import scenarios, timing

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [1, 2, 3, 10, 99, 100, 101, 1000])
@pytest.mark.parametrize("q", [50, 90, 99])
def test_percentile_is_the_smallest_sample_that_q_percent_do_not_exceed(n, q):
    samples = np.random.default_rng(n).permutation(n) + 1.0
    expected = next(value for value in sorted(samples) if 100 * np.sum(samples <= value) >= q * n)
    assert timing.percentile(samples, q) == expected == -(q * n // -100)


def test_candidates_take_turns_and_answer_the_same_query():
    seen = []
    calls = {name: lambda index, name=name: seen.append((name, index)) for name in "ABC"}
    measured = list(timing.rounds(calls, CPU, budget=1e-9, minimum=3))
    assert seen == [(name, index) for index in range(3) for name in "ABC"]
    assert [list(times) for times in measured] == [["A", "B", "C"]] * 3


def test_a_turn_is_several_calls_after_one_that_is_not_timed():
    seen = []
    calls = {name: lambda index, name=name: seen.append((name, index)) for name in "AB"}
    settle = {name: lambda name=name: seen.append(name) for name in "AB"}
    measured = list(timing.rounds(calls, CPU, budget=1e-9, minimum=3, turn=2, settle=settle))
    assert seen == ["A", ("A", 0), ("A", 1), "B", ("B", 0), ("B", 1), "A", ("A", 2), ("A", 3), "B", ("B", 2), ("B", 3)]
    assert [list(times) for times in measured] == [["A", "B"]] * 4


@pytest.mark.clock
def test_the_untimed_call_takes_what_the_candidate_before_leaves_behind():
    spinning = []

    def answer(index):
        time.sleep(0.03 if spinning else 0.001)
        spinning.clear()

    calls = {"spinner": spinning.append, "victim": answer}
    settled = list(
        timing.rounds(calls, CPU, budget=1e-9, minimum=4, settle={"spinner": list, "victim": lambda: answer(0)})
    )
    assert max(times["victim"] for times in settled) < 0.02
    assert min(times["victim"] for times in timing.rounds(calls, CPU, budget=1e-9, minimum=4)) > 0.02


@pytest.mark.clock
def test_rounds_stop_before_the_budget_is_overrun():
    calls = {"A": lambda index: time.sleep(0.05)}
    assert len(list(timing.rounds(calls, CPU, budget=0.24, minimum=1))) in {3, 4}
    assert not list(timing.rounds({}, CPU, budget=math.inf, minimum=1))


def test_ratio_is_the_median_of_the_ratios_within_each_round():
    measured = [{"base": 2.0, "ours": 1.0}, {"base": 30.0, "ours": 10.0}, {"base": 4.0, "ours": 4.0}]
    assert timing.ratio(measured, "base", "ours") == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert timing.ratio(measured, "absent", "ours") is None


def test_single_stream_sends_one_sample_a_query_and_offline_all_of_them():
    seen = []
    for scenario in (scenarios.SINGLE_STREAM, scenarios.OFFLINE):
        seen.append([])
        assert list(scenario.rounds({"A": lambda indices: seen[-1].append(list(indices))}, 3, CPU, seconds=1e-9))
    assert seen == [[[0], [0], [1], [2], [0]], [[0], [0, 1, 2]] * 3]  # a turn begins with one that is not timed


def test_multi_stream_sends_eight_samples_a_query_in_turn():
    assert scenarios.MULTI_STREAM.query(3, 0) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert scenarios.MULTI_STREAM.query(3, 1) == [2, 0, 1, 2, 0, 1, 2, 0]


def test_early_stopping_is_an_upper_bound_that_short_runs_lack():
    assert timing.upper_percentile(range(43), 90) is None  # 0.9^43 is above 1 %
    assert timing.upper_percentile(range(44), 90) == 43
    assert timing.upper_percentile(range(458), 99) is None
    assert timing.upper_percentile(range(459), 99) == 458
    many = timing.upper_percentile(range(10_000), 90)
    assert 9000 < many < 9100


def test_figures_of_known_times():
    measured = [{"published": 2.0 * k, "A": k} for k in (0.1, 0.2, 0.4)]
    single = scenarios.SINGLE_STREAM.summary(measured, "A", "published", 16)
    assert [single[key] for key in ("p50_ms", "p90_ms", "p99_ms", "min_ms", "max_ms")] == pytest.approx(
        [200, 400, 400, 100, 400]
    )
    assert "3 queries" in single["note"]
    assert "p90 = p99 = the slowest" in single["note"]
    offline = scenarios.OFFLINE.summary(measured, "A", "published", 16)
    assert offline["images_per_s"] == pytest.approx(80)
    assert (offline["min_images_per_s"], offline["max_images_per_s"]) == pytest.approx((40, 160))
    assert offline["ratio_to_published"] == pytest.approx({"median": 2.0, "min": 2.0, "max": 2.0})


def test_note_of_a_long_run_calls_no_percentile_the_slowest():
    measured = [{"A": float(k)} for k in range(1, 201)]
    assert (
        scenarios.SINGLE_STREAM.summary(measured, "A", "published", 1)["note"]
        == "percentiles by nearest rank from 200 queries"
    )
