"""Which images a model was trained on, as its file says it: the first bytes of the SHA-256 of each
one's content.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from sprfast.errors import InputError

FIELD = "trained_on"  # of a model's provenance, and of an export
_BYTES = 8  # of a digest; of a million images and a million others, one pair in ten million files would be alike


def packed(digests: Iterable[bytes]) -> str:
    """The field of these images, whose order does not matter."""
    return base64.b64encode(b"".join(sorted({each[:_BYTES] for each in digests}))).decode()


def among(document: Mapping[str, Any], digests: Iterable[bytes]) -> int:
    """How many of the digests are of images that the model was trained on; none where its file does
    not say.

    Raises:
        InputError: the field is damaged.
    """
    known = _unpacked(document)
    return sum(each[:_BYTES] in known for each in digests)


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the number of digests in their place, for people."""
    return {**document, FIELD: len(_unpacked(document))} if FIELD in document else dict(document)


def _unpacked(document: Mapping[str, Any]) -> set[bytes]:
    try:
        content = base64.b64decode(document.get(FIELD, ""), validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(f"{FIELD}: is damaged ({error})") from error
    if len(content) % _BYTES:
        raise InputError(f"{FIELD}: is damaged ({len(content)} bytes, expected a multiple of {_BYTES})")
    return {content[at : at + _BYTES] for at in range(0, len(content), _BYTES)}
