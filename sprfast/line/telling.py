"""What a line says of errors: in its log, and as errors of our own types.

Log handlers and the texts of exceptions are the caller's code, which may fail in any way; no answer
is lost by that.
"""

from __future__ import annotations

import logging
import threading

from sprfast.errors import SprfastError

_log = logging.getLogger("sprfast.line")


def say(level: int, text: str, *values: object, error: BaseException | None = None, log: logging.Logger = _log) -> None:
    """Log, with the traceback of `error`; whatever the handlers raise is passed over, but for what
    ends the main thread.
    """
    try:
        log.log(level, text, *values, exc_info=error)
    except Exception:
        return
    except BaseException:
        if threading.current_thread() is threading.main_thread():
            raise


def described(error: BaseException) -> str:
    """Its text, or its type where it has none that can be asked for."""
    try:
        return str(error)
    except BaseException:
        return type(error).__name__


def typed(error: BaseException, kind: type[SprfastError], what: str) -> SprfastError:
    """The error; where it is not one of ours, such as a decoder's own, it is logged, and one of
    this kind says `what` happened.
    """
    if isinstance(error, SprfastError):
        return error
    say(logging.ERROR, "%s", what, error=error)
    return kind(f"{what} ({type(error).__name__}: {described(error)})")
