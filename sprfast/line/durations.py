"""Seconds that a caller gives, as floats that a clock can be compared with."""

from __future__ import annotations

import math
import numbers

from sprfast.errors import InputError


def seconds(name: str, value: object, *, zero: bool) -> float:
    """A finite number above 0, or 0 where `zero` allows it.

    Raises:
        InputError: it is none; an integer too large for a float is none either.
    """
    allowed = "seconds, 0 or more" if zero else "seconds above 0"
    number = finite(name, value, allowed)
    if number < 0.0 or (number == 0.0 and not zero):
        raise refusal(name, value, allowed)
    return number


def finite(name: str, value: object, allowed: str) -> float:
    """A number as a float.

    Raises:
        InputError: it is not finite, no number, or too large; the message has what is `allowed`.
    """
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    except Exception:  # such as OverflowError
        number = math.nan
    if not math.isfinite(number):
        raise refusal(name, value, allowed)
    return number


def refusal(name: str, value: object, allowed: str) -> InputError:
    """The error for a value that is not allowed, which may have any number of digits."""
    try:
        shown = repr(value)
    except Exception:  # Python writes out no more than 4,300 digits
        shown = type(value).__name__
    shown = shown if len(shown) <= 40 else shown[:40] + "..."
    return InputError(f"{name}: {shown} is not allowed, expected {allowed}")
