"""Libraries that are not part of the core install: one way to import them."""

from __future__ import annotations

import importlib
from typing import Any

from sprfast.errors import BackendError


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
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BackendError(f"{name} cannot be imported ({reason}): pip install 'sprfast[{extra}]'") from error
