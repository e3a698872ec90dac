"""Which images a model was trained on, and which its training held back, as its file says it: the
first bytes of the SHA-256 of each one's content.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from sprfast.errors import InputError

FIELD = "trained_on"  # of a model's provenance, and of an export
HELD_BACK = "held_back_digests"  # of a model's provenance
_BYTES = 8  # of a digest; of a million images and a million others, one pair in ten million files would be alike


def packed(digests: Iterable[bytes]) -> str:
    """The field of these images, whose order does not matter."""
    return base64.b64encode(b"".join(sorted({each[:_BYTES] for each in digests}))).decode()


def among(document: Mapping[str, Any], digests: Iterable[bytes], field: str = FIELD) -> list[bool]:
    """Which of the digests are of images that the model was trained on, or that `field` has; none
    where its file does not say.

    Raises:
        InputError: the field is damaged.
    """
    known = _unpacked(document, field)
    return [each[:_BYTES] in known for each in digests]


def count(document: Mapping[str, Any], field: str) -> int:
    """The number of images of a field.

    Raises:
        InputError: the field is damaged.
    """
    return len(_unpacked(document, field))


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the number of digests in their place, for people."""
    return {**document, **{field: count(document, field) for field in (FIELD, HELD_BACK) if field in document}}


def _unpacked(document: Mapping[str, Any], field: str) -> set[bytes]:
    try:
        content = base64.b64decode(document.get(field, ""), validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(f"{field}: is damaged ({error})") from error
    if len(content) % _BYTES:
        raise InputError(f"{field}: is damaged ({len(content)} bytes, expected a multiple of {_BYTES})")
    return {content[at : at + _BYTES] for at in range(0, len(content), _BYTES)}
