"""Ray and what comes with it, which are not part of the core install."""

from __future__ import annotations

import importlib
from typing import Any

from sprfast.errors import BackendError


def require(name: str) -> Any:
    """The module `name`.

    Raises:
        BackendError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(f"{name} cannot be imported ({error}): pip install 'sprfast[ray]'") from error
