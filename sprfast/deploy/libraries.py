"""Libraries that are not part of the core install, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from sprfast.errors import BackendError


def require(name: str, extra: str) -> Any:
    """The module `name`.

    Raises:
        BackendError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(f"{name} cannot be imported ({error}): pip install 'sprfast[{extra}]'") from error
