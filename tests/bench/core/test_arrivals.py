"""Queries that come by the clock. Most tests pass a clock of their own, which makes every number
exact.
"""

import math
import time

import pytest

from sprfast.bench.core import arrivals
from support import simulated_clock


def worker(clock, service, stalls=()):
    """Takes `service` seconds a call, and longer for the queries in `stalls`."""
    taken = []

    def answer(queries):
        taken.append(list(queries))
        clock.time += service + sum(dict(stalls).get(query, 0.0) for query in queries)

    return answer, taken


def test_latency_counts_from_the_due_time():
    clock = simulated_clock.Clock()
    answer, taken = worker(clock, 0.03)
    assert arrivals.serve(answer, [0.0, 0.01, 0.02, 1.0], clock) == pytest.approx([0.03, 0.05, 0.07, 0.03])
    assert taken == [[0], [1], [2], [3]]


def test_queries_that_wait_are_answered_together():
    clock = simulated_clock.Clock()
    answer, taken = worker(clock, 0.1)
    latencies = arrivals.serve(answer, [0.0, 0.01, 0.02, 0.03, 0.04], clock, most=3)
    assert taken == [[0], [1, 2, 3], [4]]
    assert latencies == pytest.approx([0.1, 0.19, 0.18, 0.17, 0.26])


def test_a_query_that_comes_to_a_full_queue_is_dropped():
    clock = simulated_clock.Clock()
    answer, taken = worker(clock, 1.0)
    latencies = arrivals.serve(answer, [0.0, 0.1, 0.2, 0.3, 1.05], clock, waiting=2)
    assert taken == [[0], [1], [2], [4]]  # 3 comes while 1 and 2 wait; 4 finds one place
    assert [latency is None for latency in latencies] == [False, False, False, True, False]


@pytest.mark.parametrize(("service", "late"), [(0.001, 6), (0.024, 11)])
def test_a_stall_makes_the_right_number_of_frames_late(service, late):
    """300 ms at a period of 50 ms: the stalled frame, and those behind it until the system has
    caught up.
    """
    clock = simulated_clock.Clock()
    answer, _ = worker(clock, service, {20: 0.3}.items())
    figures = arrivals.line(answer, clock, period=0.05, frames=100, waiting=50)
    finish, expected = 0.0, 0
    for frame in range(100):
        finish = max(finish, 0.05 * frame) + service + (0.3 if frame == 20 else 0.0)
        expected += finish - 0.05 * frame > 0.05
    assert figures["late"] == expected == late
    assert figures["dropped"] == 0
    assert figures["max_ms"] == pytest.approx(300 + 1e3 * service)
    assert figures["p50_ms"] == pytest.approx(1e3 * service)


def test_a_stall_on_the_real_clock():
    def answer(queries):
        time.sleep(0.302 if 5 in queries else 0.002)

    figures = arrivals.line(answer, arrivals.WallClock(), period=0.05, frames=30)
    assert figures["late"] in (6, 7)  # the seventh is late by the time that its predecessors take
    assert figures["dropped"] == 0
    assert 300 <= figures["max_ms"] <= 350


def test_a_line_that_is_too_fast_drops_frames():
    clock = simulated_clock.Clock()
    answer, _ = worker(clock, 0.1)
    figures = arrivals.line(answer, clock, period=0.05, frames=40, waiting=3)
    assert figures["dropped"] > 10
    assert figures["late"] == 40 - figures["dropped"]


@pytest.mark.parametrize("limit", [3.0, 40.0, 700.0])
def test_the_search_finds_the_highest_rate(limit):
    asked = []

    def holds(rate):
        asked.append(rate)
        return rate <= limit

    assert limit / arrivals.RATE_PRECISION <= arrivals.highest_rate(holds, 50.0) <= limit
    assert len(asked) < 15
    assert arrivals.highest_rate(lambda rate: False, 50.0) is None


def test_server_finds_what_one_worker_can_take():
    """Service of 10 ms and a bound of 50 ms: below the 100 queries a second that would fill the
    time, and well above half of them.
    """
    clock = simulated_clock.Clock()
    answer, _ = worker(clock, 0.01)
    figures = arrivals.server(answer, clock, bound=0.05, start=30.0, seconds=20.0, most=1)
    assert 50.0 < figures["queries_per_s"] < 100.0
    best = max((trial for trial in figures["trials"] if trial["valid"]), key=lambda trial: trial["queries_per_s"])
    assert best["queries_per_s"] == figures["queries_per_s"]
    assert best["p99_ms"] <= 50.0
    together = arrivals.server(worker(clock, 0.01)[0], clock, bound=0.05, start=30.0, seconds=20.0, most=4)
    assert together["queries_per_s"] > 2 * figures["queries_per_s"]


def test_server_says_when_no_rate_holds():
    clock = simulated_clock.Clock()
    figures = arrivals.server(worker(clock, 1.0)[0], clock, bound=0.5, start=1.0, seconds=1.0, most=1)
    assert figures["queries_per_s"] is None
    assert all(not trial["valid"] for trial in figures["trials"])
    assert "20 queries" in figures["note"]


def test_the_wall_clock_returns_at_the_moment():
    clock = arrivals.WallClock()
    moment = clock.now() + 0.02
    clock.sleep_until(moment)
    assert 0.0 <= clock.now() - moment < 0.05
    clock.sleep_until(moment - 1.0)
    assert math.isclose(clock.now(), moment, abs_tol=0.1)
