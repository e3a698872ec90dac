"""sprfast: score-based anomaly detection (SPR, ICCV 2023) for production lines, fast and exact.

engine = sprfast.load("bottle.safetensors")
result = engine.predict("part.png")
result.verdict, result.pred_score, result.anomaly_map
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

from sprfast._version import __version__

if TYPE_CHECKING:
    from sprfast.engine.engine import Engine
    from sprfast.engine.load import load
    from sprfast.engine.predictor import Result
    from sprfast.line import Answer, Line
    from sprfast.method.threshold import Verdict
    from sprfast.training.train import train

__all__ = ["Answer", "Engine", "Line", "Result", "Verdict", "__version__", "load", "train"]

_HOMES = {
    "Answer": "line",
    "Engine": "engine.engine",
    "Line": "line",
    "Result": "engine.predictor",
    "load": "engine.load",
    "Verdict": "method.threshold",
    "train": "training.train",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # an application that sets up no logging sees none

# In a checkout that is not installed, `kernels` and `bench` lie beside this folder instead of
# inside it.
_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_here, "kernels")):
    __path__.append(os.path.dirname(_here))
__path__.append(os.path.join(_here, "deploy", "earlier"))  # for files that earlier versions wrote


def __getattr__(name: str) -> Any:
    """Public names load what they need on first use, so that importing sprfast costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sprfast' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"sprfast.{_HOMES[name]}"), name)
    except ImportError as error:
        from sprfast.system.libraries import refusal

        if said := refusal(error):
            raise said from error
        raise


def __dir__() -> list[str]:
    return sorted(__all__)
