import dataclasses
import gc
import io
import json
import logging
import math
import re
import subprocess
import sys
import threading
import urllib.request
import weakref
from datetime import datetime, timezone

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from sprfast import errors
from sprfast.errors import BackendError, InputError
from sprfast.line import telemetry
from sprfast.line.drift import Drift
from sprfast.line.health import KINDS, LATENCY_BOUNDS, Health, Latencies, ModelInfo, State, Tally
from sprfast.line.telemetry import JsonFormatter, Throttle
from sprfast.method.threshold import Verdict
from sprfast.system.redaction import redacted

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
    tally = Tally("by hand")

    class Counting:
        def health(self):
            return tally.health(State.OK, (), 0, 64, 0, 0, MODEL)

    telemetry.expose(Counting(), registry, "a")
    before = scraped(registry)[0].keys()
    kinds = [kind for _, kind in KINDS] + [errors.SprfastError]
    for number in range(10_000):
        tally.take()
        tally.answer(
            Verdict.ERROR, math.nan, kinds[number % len(kinds)](f"part {number}: fault {number}"), number / 100
        )
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


def test_without_prometheus_client_the_logs_still_work():
    code = """
import sys
sys.modules["prometheus_client"] = None
from sprfast.line import telemetry
telemetry.JsonFormatter()
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


@pytest.fixture
def log():
    """A logger and what its handler has written, as objects."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("sprfast.line")
    logger.addHandler(handler)

    def lines():
        handler.flush()
        written = stream.getvalue()
        assert written.endswith("\n")
        return [json.loads(line, parse_constant=pytest.fail) for line in written[:-1].split("\n")]

    return logger, lines


def test_a_record_is_one_object_on_one_line(log):
    logger, lines = log
    before = datetime.now(timezone.utc)
    logger.warning(
        "frame %s:\n%s",
        "7\r\n8",
        "äöü \ud800 \u2028",
        extra={"sprfast": {"event": "error", "score": 0.25, "late": True}},
    )
    (document,) = lines()
    assert document["message"] == "frame 7\r\n8:\näöü \ud800 \u2028"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document["time"])
    written = datetime.fromisoformat(document.pop("time").replace("Z", "+00:00"))
    assert abs((written - before).total_seconds()) < 600
    del document["message"]
    assert document == {"level": "WARNING", "logger": "sprfast.line", "event": "error", "score": 0.25, "late": True}


class Unprintable:
    def __str__(self):
        raise RuntimeError("no text")


def test_fields_become_what_json_can_hold(log):
    logger, lines = log
    cyclic = []
    cyclic.append(cyclic)
    fields = {
        "nan": math.nan,
        "infinite": [math.inf, -math.inf, np.float32("nan")],
        "numpy": [np.float32(0.5), np.int64(3), np.bool_(True), np.float64(0.25)],
        "verdict": Verdict.REJECT,
        "bytes": b"\xffabc",
        "nested": {1: (2, None), "deep": {"set": {3}}},
        "huge": 10**6000,
        "object": Unprintable(),
        "cyclic": cyclic,
        "long": bytearray(10**6),
        "message": "taken",
        "level": "taken too",
    }
    logger.info("m", extra={"sprfast": fields})
    (got,) = lines()
    assert got["nan"] is None
    assert got["infinite"] == [None, None, None]
    assert got["numpy"] == [0.5, 3, True, 0.25]
    assert (got["verdict"], got["bytes"], got["nested"]) == (
        "REJECT",
        "\ufffdabc",
        {"1": [2, None], "deep": {"set": [3]}},
    )
    assert isinstance(got["huge"], str)
    assert got["object"] == "<Unprintable without text: RuntimeError>"
    assert len(got["long"]) < 3000
    assert (got["message"], got["message_"], got["level"], got["level_"]) == ("m", "taken", "INFO", "taken too")


class Broken(dict):
    def items(self):
        raise RuntimeError("no items")


@pytest.mark.parametrize(
    ("message", "arguments", "extra"),
    [
        ("%d", ("x",), {}),
        ("%s %s", ("one",), {}),
        ("%s", (Unprintable(),), {}),
        (Unprintable(), (), {}),
        ("m", (), {"sprfast": "no object"}),
        ("m", (), {"sprfast": {"inner": Broken(a=1)}}),
        ("m", (), {"sprfast": {Unprintable(): 1}}),
    ],
)
def test_no_record_makes_it_raise(log, message, arguments, extra, monkeypatch):
    monkeypatch.setattr(logging.Handler, "handleError", lambda handler, record: pytest.fail("the formatter raised"))
    logger, lines = log
    logger.error(message, *arguments, extra=extra)
    (document,) = lines()
    assert (document["level"], document["logger"]) == ("ERROR", "sprfast.line")
    assert document["message"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rtsp://admin:hunter2@10.0.0.1:554/stream", "rtsp://***@10.0.0.1:554/stream"),
        ("open 'rtsp://admin:hunter2@cam/1', again", "open 'rtsp://***@cam/1', again"),
        ("rtsp://admin:hunter2@ss@cam/1", "rtsp://***@cam/1"),
        ("rtsp://admin:hunt/er2?#@cam/1", "rtsp://***@cam/1"),
        ("rtsp://:hunter2@cam/1", "rtsp://***@cam/1"),
        ("rtsp://hunter2@cam/1", "rtsp://***@cam/1"),
        ("rtsp://a:hunter2@cam1,rtsp://b:hunter2@cam2", "rtsp://***@cam1,rtsp://***@cam2"),
        ("http://cam/a.cgi?user=x&password=hunter2&size=3", "http://cam/a.cgi?user=x&password=***&size=3"),
        ("http://cam/?TOKEN=hunter2", "http://cam/?TOKEN=***"),
        ("http://cam/?passwd=hunter2;x&key=hunter2&secret=hunter2", "http://cam/?passwd=***&key=***&secret=***"),
        ("http://cam/?access_token=hunter2&apiKey=hunter2", "http://cam/?access_token=***&apiKey=***"),
        ("http://cam:8080/mail/a@b and c@d", "http://cam:8080/mail/a@b and c@d"),
        ("rtsp://cam:554/stream?channel=1", "rtsp://cam:554/stream?channel=1"),
        ("[fe80::1] 12:30 a@b: nothing = here", "[fe80::1] 12:30 a@b: nothing = here"),
        ("", ""),
    ],
)
def test_secrets_are_taken_out(text, expected):
    assert redacted(text) == expected
    assert redacted(expected) == expected


@pytest.mark.parametrize(
    "text", ["?" + "key" * 100_000, "://a:" + "@" * 300_000, "://" * 100_000, "?;&" * 100_000, "?" + "a" * 300_000]
)
def test_no_text_takes_long_to_redact(text):
    done = threading.Event()
    threading.Thread(target=lambda: (redacted(text), done.set()), daemon=True).start()
    assert done.wait(60)  # what grew with the square would take hours


def test_no_secret_is_logged(log):
    logger, lines = log
    url = "rtsp://admin:hunter2@cam/1?token=hunter2"
    try:
        try:
            raise OSError(f"{url} cannot be opened")
        except OSError as error:
            raise InputError(f"camera {url}") from error
    except InputError:
        fields = {
            "url": url,
            url: [url, {"inner": url.encode()}],
            "password": "hunter2",
            "cut": b"x" * 1980 + url.encode(),
        }
        logger.exception("camera %s: %s", url, "no picture", extra={"sprfast": fields}, stack_info=True)
    logger.error("wrong arguments %d", url)
    assert "hunter2" not in json.dumps(lines())
    first = lines()[0]
    assert (first["url"], first["password"]) == ("rtsp://***@cam/1?token=***", "***")
    assert "OSError: rtsp://***@cam/1?token=***" in first["exception"]
    assert "InputError: camera rtsp://***@cam/1" in first["exception"]
    assert "test_no_secret_is_logged" in first["stack"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def throttled(log):
    """A function that logs, what was written, and the clock."""
    logger, lines = log
    clock = Clock()
    logger.handlers[0].addFilter(Throttle(burst=3, interval=10.0, clock=clock))

    def warn(kind, number=0):
        logger.warning("frame %d", number, extra={"sprfast": {"kind": kind}} if kind is not None else {})

    return warn, lines, clock


def test_a_kind_has_a_number_of_records_in_an_interval(throttled):
    warn, lines, clock = throttled
    for number in range(20):
        warn("input", number)
    warn("deadline", 100)
    assert [line["message"] for line in lines()] == ["frame 0", "frame 1", "frame 2", "frame 100"]
    clock.now = 9.9
    warn("input", 20)
    assert len(lines()) == 4
    clock.now = 10.0
    warn("input", 21)
    warn("input", 22)
    assert [line["message"] for line in lines()[4:]] == ["frame 21 (18 more of this kind were not logged)", "frame 22"]
    assert [line.get("suppressed") for line in lines()[4:]] == [18, None]


def test_records_without_a_kind_are_told_apart_by_where_they_are_logged(log):
    logger, lines = log
    logger.handlers[0].addFilter(Throttle(burst=1, interval=10.0, clock=Clock()))
    for number in range(3):
        logger.warning("here %d", number)
        logger.warning("there %d", number)
    assert [line["message"] for line in lines()] == ["here 0", "there 0"]


def test_kinds_without_end_do_not_fill_the_memory(throttled):
    warn, lines, _ = throttled
    for number in range(5000):
        warn(f"kind {number}", number)
    assert len(lines()) == Throttle.KINDS + 3  # what came later shares one allowance


def test_a_throttle_loses_no_record_between_threads():
    limit = Throttle(burst=50, interval=10.0, clock=Clock())

    def record():
        return logging.makeLogRecord({"sprfast": {"kind": "input"}})

    passed = []
    threads = [
        threading.Thread(target=lambda: passed.extend(limit.filter(record()) for _ in range(500))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (sum(passed), len(passed)) == (50, 2000)


def test_a_throttle_says_the_number_once_and_keeps_what_the_record_had():
    clock = Clock()
    limit = Throttle(burst=1, interval=1.0, clock=clock)
    given = [
        {"msg": "%d and %s", "args": (number, "x"), "sprfast": {"kind": "input", "id": number}} for number in range(4)
    ]
    records = [logging.makeLogRecord(each) for each in given]
    assert [limit.filter(record) for record in records[:3]] == [True, False, False]
    clock.now = 1.0
    assert limit.filter(records[3])
    assert records[3].getMessage() == "3 and x (2 more of this kind were not logged)"
    assert records[3].sprfast == {"kind": "input", "id": 3, "suppressed": 2}


@pytest.mark.parametrize(
    ("burst", "interval"), [(0, 1.0), (1.5, 1.0), (True, 1.0), (1, 0.0), (1, math.inf), (1, math.nan)]
)
def test_arguments_of_a_throttle_are_checked(burst, interval):
    with pytest.raises(InputError, match=r"burst|interval"):
        Throttle(burst, interval)
