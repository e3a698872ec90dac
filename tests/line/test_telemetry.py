import dataclasses
import gc
import subprocess
import sys
import urllib.request
import weakref

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from sprfast import errors
from sprfast.errors import BackendError, InputError
from sprfast.line import telemetry
from sprfast.line.drift import Drift
from sprfast.line.health import KINDS, LATENCY_BOUNDS, Counters, Health, Latencies, ModelInfo, State
from sprfast.method.threshold import Verdict

MODEL = ModelInfo("ab" * 32, "cpu", "float32")


def watched():
    """Drift with one alarm in two windows."""
    drift = Drift([float(score) for score in range(50)], window=10, false_alarm_rate=0.01)
    for score in [*range(0, 50, 5), *range(900, 910)]:
        drift.add(score)
    return drift.report()


def a_health(**changes):
    counts = tuple(range(1, len(LATENCY_BOUNDS) + 1))
    health = Health(
        state=State.DEGRADED,
        reasons=("the lamp",),
        taken=120,
        refused=3,
        verdicts={"PASS": 90, "REJECT": 8, "ERROR": 7},
        errors={name: index for index, (name, _) in enumerate(KINDS)},
        unanswered=15,
        capacity=64,
        callback_failures=2,
        batches=30,
        batched=105,
        swaps=1,
        latencies=Latencies(counts, 12.5),
        model=MODEL,
        drift=watched(),
        drift_reason=None,
    )
    return dataclasses.replace(health, **changes)


class Fixed:
    """Has the health that it is given."""

    def __init__(self, health):
        self.current = health

    def health(self):
        return self.current


def scraped(registry):
    """Samples by name and labels, and the type of each family."""
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert len({family.name for family in families}) == len(families)
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }
    return samples, {family.name: family.type for family in families}


def value(samples, name, **labels):
    return samples[(f"sprfast_{name}", tuple(sorted({"line": "a", **labels}.items())))]


def test_every_number_of_the_health_is_scraped():
    registry, health = CollectorRegistry(), a_health()
    telemetry.expose(Fixed(health), registry, "a")
    samples, types = scraped(registry)
    assert {verdict: value(samples, "images_total", verdict=verdict) for verdict in health.verdicts} == health.verdicts
    assert {kind: value(samples, "errors_total", kind=kind) for kind in health.errors} == health.errors
    assert {state: value(samples, "health", state=state.value) for state in State} == {
        state: state is State.DEGRADED for state in State
    }
    expected = {
        "refused_total": 3,
        "unanswered": 15,
        "capacity": 64,
        "batches_total": 30,
        "batched_images_total": 105,
        "callback_failures_total": 2,
        "model_swaps_total": 1,
        "drift_windows_total": 2,
        "drift_alarms_total": 1,
        "drift_p_value": health.drift.p_value,
        "drift_statistic": health.drift.statistic,
        "drift_median": 904.5,
        "drift_calibration_median": 24.5,
    }
    assert {name: value(samples, name) for name in expected} == expected
    assert value(samples, "model_info", sha256=MODEL.sha256, backend="cpu", precision="float32") == 1
    assert (types["sprfast_images"], types["sprfast_unanswered"], types["sprfast_latency_seconds"]) == (
        "counter",
        "gauge",
        "histogram",
    )


def test_the_histogram_is_cumulative():
    registry = CollectorRegistry()
    telemetry.expose(Fixed(a_health()), registry, "a")
    samples, _ = scraped(registry)
    bounds = {
        dict(labels)["le"]: count
        for (name, labels), count in samples.items()
        if name == "sprfast_latency_seconds_bucket"
    }
    ascending = sorted(bounds.items(), key=lambda bound: float(bound[0]))
    assert [float(bound) for bound, _ in ascending] == list(LATENCY_BOUNDS)
    assert [count for _, count in ascending] == np.cumsum(range(1, len(LATENCY_BOUNDS) + 1)).tolist()
    assert bounds["+Inf"] == value(samples, "latency_seconds_count")
    assert value(samples, "latency_seconds_sum") == 12.5


def test_a_scrape_shows_the_health_of_its_moment():
    registry, line = CollectorRegistry(), Fixed(a_health())
    telemetry.expose(line, registry, "a")
    line.current = a_health(state=State.CLOSED, refused=4, drift=None, drift_reason="by hand")
    samples, types = scraped(registry)
    assert value(samples, "refused_total") == 4
    assert value(samples, "health", state="CLOSED") == 1
    assert value(samples, "health", state="DEGRADED") == 0
    assert not [name for name in types if "drift" in name]


def test_the_number_of_samples_does_not_depend_on_what_comes_in():
    registry = CollectorRegistry()
    counters = Counters("by hand")

    class Counting:
        def health(self):
            return counters.health(state=State.OK, reasons=(), unanswered=0, capacity=64, model=MODEL)

    telemetry.expose(Counting(), registry, "a")
    before = scraped(registry)[0].keys()
    kinds = [kind for _, kind in KINDS] + [errors.SprfastError]
    for number in range(10_000):
        counters.count(taken=1)
        counters.answer(Verdict.ERROR, kinds[number % len(kinds)](f"part {number}: fault {number}"), number / 100)
    samples = scraped(registry)[0]
    assert samples.keys() == before
    assert value(samples, "images_total", verdict="ERROR") == 10_000
    assert sum(count for (name, _), count in samples.items() if name == "sprfast_errors_total") == 10_000


def test_lines_of_one_process_are_told_apart_in_the_same_families():
    registry, first, second = CollectorRegistry(), Fixed(a_health(capacity=1)), Fixed(a_health(capacity=2))
    telemetry.expose(first, registry, "a")
    with pytest.raises(InputError, match="a line named 'a' already"):
        telemetry.expose(second, registry, "a")
    telemetry.expose(second, registry, "b")
    samples, _ = scraped(registry)
    assert [value(samples, "capacity", line=name) for name in "ab"] == [1, 2]
    telemetry.unexpose(first, registry)
    samples, _ = scraped(registry)
    assert {dict(labels)["line"] for _, labels in samples} == {"b"}
    with pytest.raises(InputError, match="not exposed"):
        telemetry.unexpose(first, registry)
    telemetry.unexpose(second, registry)
    assert generate_latest(registry) == b""
    telemetry.expose(first, registry, "a")
    assert value(scraped(registry)[0], "capacity") == 1


def test_a_line_that_is_not_exposed_any_more_is_not_held():
    registry, line = CollectorRegistry(), Fixed(a_health())
    held = weakref.ref(line)
    telemetry.expose(line, registry)
    telemetry.unexpose(line, registry)
    del line
    gc.collect()
    assert held() is None


def test_without_a_registry_it_is_the_one_of_the_library():
    line = Fixed(a_health())
    telemetry.expose(line)
    try:
        assert b'sprfast_capacity{line=""} 64.0' in generate_latest()
    finally:
        telemetry.unexpose(line)
    assert b"sprfast_" not in generate_latest()


def test_a_registry_with_metrics_of_our_names_is_refused():
    registry = CollectorRegistry()
    Counter("sprfast_images", "another's", registry=registry)
    with pytest.raises(InputError, match="sprfast_images"):
        telemetry.expose(Fixed(a_health()), registry)
    with pytest.raises(InputError, match="not exposed"):
        telemetry.unexpose(Fixed(a_health()), registry)


def test_metrics_over_http():
    registry = CollectorRegistry()
    telemetry.expose(Fixed(a_health()), registry, "a")
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=60) as response:
            text = response.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)
    (family,) = [family for family in text_string_to_metric_families(text) if family.name == "sprfast_capacity"]
    assert [sample.value for sample in family.samples] == [64]


def test_without_prometheus_client_the_message_says_what_to_install():
    code = """
import sys
sys.modules["prometheus_client"] = None
from sprfast.line import telemetry
try:
    telemetry.expose(None)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        done.stdout
        == f"{BackendError.__name__} telemetry: prometheus-client is not installed; pip install 'sprfast[line]'\n"
    )
