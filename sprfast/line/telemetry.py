"""Metrics of a line for Prometheus.

Metrics are read from `Line.health` at each scrape, so that nothing is measured twice and a frame
costs nothing more. Their HTTP server is prometheus_client's own; keep it on the loopback interface,
or behind something that asks who is there:

    telemetry.expose(line)
    prometheus_client.start_http_server(9100, addr="127.0.0.1")
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import threading
import weakref
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from sprfast.errors import BackendError, InputError
from sprfast.line.health import LATENCY_BOUNDS, Health, State

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class Watched(Protocol):
    """A line, or whatever else has its health."""

    def health(self) -> Health:
        """State and counts, now."""


# Kind, name without prefix and suffix, attribute of `Health`, help.
_NUMBERS = (
    ("Counter", "refused", "refused", "Frames that the line did not take."),
    ("Counter", "batches", "batches", "Calls of the network."),
    ("Counter", "batched_images", "batched", "Frames in calls of the network."),
    ("Counter", "callback_failures", "callback_failures", "Exceptions that callbacks raised."),
    ("Counter", "model_swaps", "swaps", "Models that have replaced another one."),
    ("Counter", "drift_windows", "drift.windows", "Windows of passed parts that were tested for drift."),
    ("Counter", "drift_alarms", "drift.alarms", "Windows whose scores differed from the calibration's."),
    ("Gauge", "unanswered", "unanswered", "Frames taken whose answer has not been delivered."),
    ("Gauge", "capacity", "capacity", "Unanswered frames at which the overflow policy acts."),
    ("Gauge", "drift_p_value", "drift.p_value", "Of the last window; 1 before the first."),
    ("Gauge", "drift_statistic", "drift.statistic", "Kolmogorov-Smirnov distance of the last window."),
    ("Gauge", "drift_median", "drift.median", "Median score of the last window; NaN before the first."),
    ("Gauge", "drift_calibration_median", "drift.calibration_median", "Median score that it is compared with."),
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
        families = (
            ("Counter", "images", "Answers by verdict.", "verdict"),
            ("Counter", "errors", "Answers with the verdict ERROR by kind.", "kind"),
            ("Histogram", "latency_seconds", "From trigger to answer."),
            ("Gauge", "health", "1 for the line's state, 0 for the others.", "state"),
            ("Info", "model", "What computes the scores."),
            *((kind, name, text) for kind, name, _, text in _NUMBERS),
        )
        return {
            name: getattr(core, f"{kind}MetricFamily")(f"sprfast_{name}", text, labels=["line", *labels])
            for kind, name, text, *labels in families
        }


def _fill(families: dict[str, Any], name: str, health: Health, text: Callable[[float], str]) -> None:
    """Add a line's samples."""
    for verdict, count in health.verdicts.items():
        families["images"].add_metric([name, verdict], count)
    for kind, count in health.errors.items():
        families["errors"].add_metric([name, kind], count)
    for state in State:
        families["health"].add_metric([name, state.value], float(state is health.state))
    families["model"].add_metric([name], dataclasses.asdict(health.model))
    buckets = zip(map(text, LATENCY_BOUNDS), itertools.accumulate(health.latencies.counts), strict=True)
    families["latency_seconds"].add_metric([name], list(buckets), health.latencies.total)
    for _, family, attribute, _ in _NUMBERS:
        if health.drift is not None or not attribute.startswith("drift."):
            families[family].add_metric([name], operator.attrgetter(attribute)(health))


def _client() -> ModuleType:
    try:
        import prometheus_client
    except ImportError as error:
        raise BackendError("telemetry: prometheus-client is not installed; pip install 'sprfast[line]'") from error
    return prometheus_client
