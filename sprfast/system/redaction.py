"""Secrets in text that is logged or printed, such as those in a camera's address."""

from __future__ import annotations

import re

_MASK = "***"

# Where it is doubtful what belongs to a secret, more is taken than less: a password may hold @ / ?
# # unescaped, against the rules. Only a colon with a port's digits and a slash after it is not
# taken for the one between user and password.
_USER = re.compile(r"(?<=://)(?:[^\s/?#:@]*:(?!\d{1,5}[/?#])(?:(?!://)\S)*|[^\s/?#@]+)@")
_SECRET = r"[\w.-]{0,64}(?:password|passwd|token|key|secret)[\w.-]{0,64}"  # bounded, so that no text takes long
_PARAMETER = re.compile(rf"(?<=[?&;])({_SECRET}=)[^\s&]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text without user and password of the URLs in it, and without the values of query
    parameters that are named like a secret.
    """
    return _PARAMETER.sub(rf"\1{_MASK}", _USER.sub(f"{_MASK}@", text))
