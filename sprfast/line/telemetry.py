"""A line for those who watch it: metrics for Prometheus, and logs of one JSON object a line.

Metrics are read from `Line.health` at each scrape, so that nothing is measured twice and a frame
costs nothing more. Their HTTP server is prometheus_client's own; keep it on the loopback interface,
or behind something that asks who is there:

    telemetry.expose(line)
    prometheus_client.start_http_server(9100, addr="127.0.0.1")
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import numbers
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sprfast.errors import BackendError, InputError
from sprfast.line.drift import DriftReport
from sprfast.line.health import LATENCY_BOUNDS, Health, State
from sprfast.system.redaction import MASK, names_secret, redacted

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class Watched(Protocol):
    """A line, or whatever else has its health."""

    def health(self) -> Health:
        """State and counts, now."""


# Name without prefix and suffix, help, and where the value is.
_COUNTERS: tuple[tuple[str, str, Callable[[Health], float]], ...] = (
    ("refused", "Frames that the line did not take.", lambda health: health.refused),
    ("batches", "Calls of the network.", lambda health: health.batches),
    ("batched_images", "Frames in calls of the network.", lambda health: health.batched),
    ("callback_failures", "Exceptions that callbacks raised.", lambda health: health.callback_failures),
    ("model_swaps", "Models that have replaced another one.", lambda health: health.swaps),
)
_GAUGES: tuple[tuple[str, str, Callable[[Health], float]], ...] = (
    ("unanswered", "Frames taken whose answer has not been delivered.", lambda health: health.unanswered),
    ("capacity", "Unanswered frames at which the overflow policy acts.", lambda health: health.capacity),
)
_DRIFT_COUNTERS: tuple[tuple[str, str, Callable[[DriftReport], float]], ...] = (
    ("drift_windows", "Windows of passed parts that were tested for drift.", lambda drift: drift.windows),
    ("drift_alarms", "Windows whose scores differed from the calibration's.", lambda drift: drift.alarms),
)
_DRIFT_GAUGES: tuple[tuple[str, str, Callable[[DriftReport], float]], ...] = (
    ("drift_p_value", "Of the last window; 1 before the first.", lambda drift: drift.p_value),
    ("drift_statistic", "Kolmogorov-Smirnov distance of the last window.", lambda drift: drift.statistic),
    ("drift_median", "Median score of the last window; NaN before the first.", lambda drift: drift.median),
    ("drift_calibration_median", "Median score that it is compared with.", lambda drift: drift.calibration_median),
)

_lock = threading.Lock()
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, _Collector] = weakref.WeakKeyDictionary()


def expose(line: Watched, registry: CollectorRegistry | None = None, name: str = "") -> None:
    """Add a line's metrics to what a registry gives at each scrape; the registry holds the line
    until `unexpose`.

    Args:
        line: open or closed.
        registry: None: prometheus_client.REGISTRY.
        name: value of the label `line`, by which lines of one process are told apart.

    Raises:
        BackendError: prometheus_client is not installed.
        InputError: the registry has a line of this name, or other metrics with our names.
    """
    client = _client()
    registry = client.REGISTRY if registry is None else registry
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = _Collector(client)
            try:
                registry.register(collector)
            except ValueError as error:
                raise InputError(f"registry: has metrics of our names already ({error}); use another one") from error
            _collectors[registry] = collector
        elif name in collector.lines:
            raise InputError(f"name: the registry has a line named {name!r} already; give each line a name of its own")
        collector.lines = {**collector.lines, name: line}  # a new one, since a scrape may be reading the old one


def unexpose(line: Watched, registry: CollectorRegistry | None = None) -> None:
    """Take a line's metrics off a registry.

    Raises:
        BackendError: prometheus_client is not installed.
        InputError: the registry does not have it.
    """
    client = _client()
    registry = client.REGISTRY if registry is None else registry
    with _lock:
        collector = _collectors.get(registry)
        if collector is None or all(each is not line for each in collector.lines.values()):
            raise InputError("line: is not exposed in this registry")
        collector.lines = {name: each for name, each in collector.lines.items() if each is not line}
        if not collector.lines:
            registry.unregister(collector)
            del _collectors[registry]


class _Collector:
    """The families of all lines of one registry, since a family may appear only once in what a
    scrape gives.
    """

    def __init__(self, client: ModuleType) -> None:
        self._client = client
        self.lines: dict[str, Watched] = {}

    def describe(self) -> Iterable[Metric]:
        return self._families().values()

    def collect(self) -> Iterable[Metric]:
        families = self._families()
        for name, line in self.lines.items():
            _fill(families, name, line.health(), self._client.utils.floatToGoString)
        return [family for family in families.values() if family.samples]

    def _families(self) -> dict[str, Any]:
        """Without samples, by name without prefix."""
        core = self._client.metrics_core

        def family(kind: str, name: str, text: str, *labels: str) -> tuple[str, Metric]:
            return name, getattr(core, f"{kind}MetricFamily")(f"sprfast_{name}", text, labels=["line", *labels])

        return dict(
            [
                family("Counter", "images", "Answers by verdict.", "verdict"),
                family("Counter", "errors", "Answers with the verdict ERROR by kind.", "kind"),
                family("Histogram", "latency_seconds", "From trigger to answer."),
                family("Gauge", "health", "1 for the line's state, 0 for the others.", "state"),
                family("Info", "model", "What computes the scores."),
                *(family("Counter", name, text) for name, text, _ in (*_COUNTERS, *_DRIFT_COUNTERS)),
                *(family("Gauge", name, text) for name, text, _ in (*_GAUGES, *_DRIFT_GAUGES)),
            ]
        )


def _fill(families: dict[str, Any], name: str, health: Health, text: Callable[[float], str]) -> None:
    """Add a line's samples."""
    for verdict, count in health.verdicts.items():
        families["images"].add_metric([name, verdict], count)
    for kind, count in health.errors.items():
        families["errors"].add_metric([name, kind], count)
    for state in State:
        families["health"].add_metric([name, state.value], float(state is health.state))
    families["model"].add_metric([name], dataclasses.asdict(health.model))
    buckets, below = [], 0
    for bound, count in zip(LATENCY_BOUNDS, health.latencies.counts, strict=True):
        below += count
        buckets.append((text(bound), below))
    families["latency_seconds"].add_metric([name], buckets, health.latencies.total)
    for family, _, value in (*_COUNTERS, *_GAUGES):
        families[family].add_metric([name], value(health))
    if health.drift is not None:
        for family, _, drift_value in (*_DRIFT_COUNTERS, *_DRIFT_GAUGES):
            families[family].add_metric([name], drift_value(health.drift))


def _client() -> ModuleType:
    try:
        import prometheus_client
    except ImportError as error:
        raise BackendError("telemetry: prometheus-client is not installed; pip install 'sprfast[line]'") from error
    return prometheus_client


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with secrets taken out; a record that cannot be formatted still gives
    a line.

    It has `time` (of the wall clock, in UTC: a label, not for measuring), `level`, `logger`,
    `message`, the fields of `extra={"sprfast": {...}}`, and `exception` and `stack` where there are
    such. A field with one of these names gets an underscore.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        try:
            return json.dumps(self._document(record), allow_nan=False)
        except Exception as error:  # such as of a field's own methods
            return json.dumps(
                {
                    "level": record.levelname,
                    "logger": record.name,
                    "message": f"a record that gives {type(error).__name__}",
                }
            )

    def _document(self, record: logging.LogRecord) -> dict[str, Any]:
        time_of_day = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc).isoformat(
            timespec="milliseconds"
        )
        document: dict[str, Any] = {
            "time": time_of_day.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": redacted(_message(record)),
        }
        taken = {*document, "exception", "stack"}
        for name, value in _plain(_fields(record)).items():
            document[f"{name}_" if name in taken else name] = value
        if record.exc_info or record.exc_text:
            document["exception"] = redacted(
                self.formatException(record.exc_info) if record.exc_info else str(record.exc_text)
            )
        if record.stack_info:
            document["stack"] = redacted(self.formatStack(record.stack_info))
        return document


class Throttle(logging.Filter):
    """Lets through a limited number of records of each kind, and says in the next one how many it
    did not let through.

    The kind is `kind` of `extra={"sprfast": {...}}`, else the place that logs. The number is the
    field `suppressed` and at the end of the message, for every handler that sees the record later.
    Safe to call from several threads.

    Args:
        burst: records of a kind in an interval.
        interval: seconds.
        clock: in seconds.

    Raises:
        InputError: an argument is not allowed.
    """

    KINDS = 256  # that are told apart; what comes later is of one kind

    def __init__(self, burst: int = 10, interval: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        if type(burst) is not int or burst < 1:
            raise InputError(f"burst: {burst!r} is not allowed, expected an integer of at least 1")
        if not 0.0 < interval < math.inf:
            raise InputError(f"interval: {interval!r} is not allowed, expected seconds above 0")
        self._burst, self._interval, self._clock = burst, interval, clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int] | None, _Seen] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is let through."""
        fields = _fields(record)
        kind = fields.get("kind")
        key: tuple[str, int] | None = (kind[:100], -1) if isinstance(kind, str) else (record.pathname, record.lineno)
        with self._lock:
            now = self._clock()
            if key not in self._seen and len(self._seen) >= self.KINDS:
                key = None
            seen = self._seen.setdefault(key, _Seen(now))
            if now - seen.since >= self._interval:
                seen.since, seen.passed = now, 0
            if seen.passed >= self._burst:
                seen.suppressed += 1
                return False
            seen.passed += 1
            suppressed, seen.suppressed = seen.suppressed, 0
        if suppressed:
            record.msg, record.args = f"{_message(record)} ({suppressed} more of this kind were not logged)", ()
            record.sprfast = {**fields, "suppressed": suppressed}
        return True


@dataclasses.dataclass
class _Seen:
    """Of one kind, in the interval that began at `since`."""

    since: float
    passed: int = 0
    suppressed: int = 0


_DEPTH = 8  # of objects in objects
_LENGTH = 2000  # characters of what is neither text nor a number


def _message(record: logging.LogRecord) -> str:
    """With its arguments, where they fit."""
    try:
        return record.getMessage()
    except Exception:  # whatever an argument's own __str__ raises, too
        return f"{_text(record.msg)} (its arguments cannot be formatted: {_text(record.args)})"


def _fields(record: logging.LogRecord) -> dict[Any, Any]:
    fields = getattr(record, "sprfast", None)
    return dict(fields) if isinstance(fields, Mapping) else {}


def _plain(value: Any, depth: int = 0) -> Any:
    """What JSON can hold, without secrets."""
    if value is None or isinstance(value, (bool, np.bool_)):
        return None if value is None else bool(value)
    if isinstance(value, str):
        return redacted(str.__str__(value))
    if isinstance(value, numbers.Integral):
        return number if -(2**63) <= (number := int(value)) < 2**64 else _text(value)
    if isinstance(value, numbers.Real):
        return real if math.isfinite(real := float(value)) else None
    if depth < _DEPTH and isinstance(value, Mapping):
        named = {_text(name): each for name, each in value.items()}
        return {name: MASK if names_secret(name) else _plain(each, depth + 1) for name, each in named.items()}
    if depth < _DEPTH and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each, depth + 1) for each in value]
    return _text(value)


def _text(value: Any) -> str:
    """Without secrets, cut to a length that a log can take."""
    try:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    except Exception as error:
        return f"<{type(value).__name__} without text: {type(error).__name__}>"
    text = redacted(text)  # before it is cut: half an address would not be told
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."
