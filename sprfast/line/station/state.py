"""A station at one moment, as plain JSON values for a page."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from sprfast.data.images import display_name
from sprfast.line.station.history import Seen
from sprfast.line.station.station import Station

SUFFIXES = (".safetensors", ".onnx", ".plan")  # of models and exports


def describe(station: Station) -> dict[str, Any]:
    """Everything beside the answers themselves."""
    health, threshold = station.line.health(), station.predictor.threshold
    seen = station.history.since(0)
    return {
        "run": station.run_id,
        "model": {
            "file": display_name(station.model.name),
            **dataclasses.asdict(health.model),
            "threshold": threshold and threshold.value,
            "false_reject_rate": threshold and threshold.false_reject_rate,
        },
        "models": _models(station),
        "state": health.state.value,
        "reasons": list(health.reasons),
        "faults": station.faults(),
        "paused": station.paused,
        "counts": {
            **health.verdicts,
            "taken": health.taken,
            "refused": health.refused,
            "unanswered": health.unanswered,
            "callback_failures": health.callback_failures,
        },
        "errors": {kind: count for kind, count in health.errors.items() if count},
        "latency": _latency([each.seconds for each in seen]),
        "drift": health.drift and {name: _finite(value) for name, value in dataclasses.asdict(health.drift).items()},
        "drift_reason": health.drift_reason,
        "marked": len(station.marked.names()),
        "last": seen[-1].time if seen else None,
        "picture": station.history.look(),
    }


def answers(seen: list[Seen]) -> list[dict[str, Any]]:
    """Answers, the oldest first."""
    return [vars(each) for each in seen]


def _models(station: Station) -> list[str]:
    try:
        names = os.listdir(station.model.parent)
    except OSError:
        return []
    return sorted(display_name(name) for name in names if name.endswith(SUFFIXES) and not name.startswith("."))[:100]


def _latency(seconds: list[float]) -> dict[str, Any]:
    """Percentiles in milliseconds: the smallest value that so many percent do not exceed."""
    ascending = sorted(seconds)
    count = len(ascending)
    percentiles = {
        f"p{percent}_ms": round(ascending[math.ceil(count * percent / 100) - 1] * 1e3, 2) if count else None
        for percent in (50, 95, 99)
    }
    return {**percentiles, "answers": count}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
