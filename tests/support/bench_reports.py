"""Made-up reports of `sprfast bench`."""

import io

import numpy as np

from sprfast.bench.core import cases, scenarios
from sprfast.system.terminal import Terminal

NAMES = {scenario.key: scenario.name for scenario in scenarios.ALL}
KEYS = tuple(NAMES)
SPEEDS = {"published": 1.0, "eager": 1.5, "cuda_graph_bfloat16": 6.0}


def synthetic(seed=0, rounds=30, machine=1.0, slowdown=None, noise=0.03):
    """A report of a machine `machine` times slower, each time with lognormal noise; `slowdown` is a
    factor of time by candidate.
    """
    random = np.random.default_rng(seed)
    candidates = {}
    for name, speed in SPEEDS.items():
        time = 0.1 * machine / speed * (slowdown or {}).get(name, 1.0)
        figures = {key: {"seconds": list(time * random.lognormal(0, noise, rounds))} for key in KEYS}
        checks = {name: {"passed": True} for name in ("one_image", "batch")}
        candidates[name] = {
            "status": "measured",
            "precision": "float32",
            "asked_precision": "float32",
            "tolerance": 1e-4,
            "parity": checks,
            **figures,
        }
    return {
        "schema_version": cases.SCHEMA_VERSION,
        "complete": True,
        "environment": {
            "date_utc": "2026-11-23",
            "load_average": 0.1,
            "torch": "2.13.0",
            "devices": {"cpu": {"name": "a CPU"}},
        },
        "model": {
            "sha256": "ab" * 32,
            "network": {"base_width": 64},
            "schedule": {"levels": [{"t": 1e-3, "draws": 3, "weight": 1.0}], "noise": "gaussian"},
        },
        "input": {"height": 192, "width": 192, "samples": 16},
        "device": "cpu",
        "timed": "tensor to map",
        "truth": "the definition",
        "baseline": "published",
        "candidates": candidates,
    }


def change(document, path, value):
    """Put `value` at a dotted path; the ellipsis removes what is there."""
    *parents, last = path.split(".")
    for name in parents:
        document = document[name]
    if value is ...:
        del document[last]
    else:
        document[last] = value


def printed(renderable, width=80):
    """What a terminal shows."""
    console = Terminal(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()
