"""Libraries that are not part of the core install: one way to import them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from sprfast.errors import BackendError

# What `sprfast[train]` brings; a plain install scores exports without. Modules that are of no use
# without one of them import it as they come.
TRAIN = ("torch", "sklearn", "scipy", "matplotlib", "jinja2")


def missing(name: str, extra: str) -> str | None:
    """None where the module `name` is installed, else what to install; nothing is imported."""
    if importlib.util.find_spec(name) is not None:
        return None
    return f"needs {name}, not installed here: run pip install 'sprfast[{extra}]'"


def refusal(error: ImportError) -> BackendError | None:
    """What is said to a user instead of an error that one of `TRAIN` cannot be imported; None for
    others.
    """
    name = (error.name or "").partition(".")[0]
    if name not in TRAIN:
        return None
    return BackendError(f"{name} cannot be imported ({_reason(error)}): pip install 'sprfast[train]'")


def require(name: str, extra: str) -> Any:
    """The module `name`.

    Args:
        extra: of sprfast, with which it is installed.

    Raises:
        BackendError: it is not installed or does not load; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: of a library of its own that does not load
        raise BackendError(f"{name} cannot be imported ({_reason(error)}): pip install 'sprfast[{extra}]'") from error


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
