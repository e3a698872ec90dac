import mmap
import os
import threading

import numpy as np
import pytest

from sprfast.bench.line.soak import samples


def of_memory(frames, memory):
    return [
        samples.ProcessSample(int(count), 0.0, float(held), None, 1, 3, None, None)
        for count, held in zip(frames, memory, strict=True)
    ]


def test_slopes_are_those_of_least_squares():
    random = np.random.default_rng(0)
    frames = np.arange(0, 20_000, 500)
    memory = 5e5 + 0.003 * frames + random.normal(0, 7, len(frames))
    taken = [
        samples.ProcessSample(int(x), 0.0, float(y), None, 1, 3, None, None)
        for x, y in zip(frames, memory, strict=True)
    ]
    found = samples.trend(taken, "memory_kb")
    (slope, _), covariance = np.polyfit(frames / 1000, memory, 1, cov=True)
    assert (found.slope, found.standard_error) == pytest.approx((slope, covariance[0, 0] ** 0.5))
    assert found.median_slope == pytest.approx(3, rel=0.1)
    assert samples.trend(taken, "threads") == samples.Trend(first=None, last=None)
    few = samples.trend(taken[:2], "memory_kb")
    assert few == samples.Trend(first=memory[0], last=memory[1])


def test_a_step_is_no_growth():
    frames = np.arange(0, 100_000, 500)
    once, again = (np.where(frames < 30_000, 0, 128), 128 * (frames // 10_000))
    slopes = []
    for memory in (once, again):
        taken = [
            samples.ProcessSample(int(x), 0.0, float(y), None, 1, 3, None, None)
            for x, y in zip(frames, memory, strict=True)
        ]
        slopes.append(samples.trend(taken, "memory_kb").median_slope)
    assert slopes == pytest.approx([0, 12.8], abs=0.2)


@pytest.mark.skipif(samples.unavailable() is not None, reason=str(samples.unavailable()))
def test_a_sample_tells_what_the_process_holds():
    latencies = np.arange(1, 101) / 1000
    taken = samples.Samples(2)
    taken.take(0, 0.0, latencies)
    held, release = mmap.mmap(-1, 16 * 2**20), threading.Event()
    held.write(b"1" * len(held))
    thread = threading.Thread(target=release.wait)
    thread.start()
    with open(os.devnull):
        taken.take(1, 1.0, latencies[:0])
    release.set()
    thread.join()
    held.close()
    before, after = taken.listed()
    assert (before.frames, before.p50_ms, before.p99_ms) == pytest.approx((0, 50, 99))
    assert after.memory_kb - before.memory_kb == pytest.approx(16 * 1024, abs=2048)
    grown = [getattr(after, name) - getattr(before, name) for name in ("threads", "python_threads", "descriptors")]
    assert grown == [1, 1, 1]
    assert (after.frames, after.p50_ms, after.p99_ms) == (1, None, None)
