"""Which images a model was trained on, as its file says it: the first bytes of the SHA-256 of each
one's content.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from sprfast.errors import InputError

FIELD = "trained_on"  # of a model's provenance
_BYTES = 8  # of a digest; of a million images and a million others, one pair in ten million files would be alike


def packed(digests: Iterable[bytes]) -> str:
    """The field of these images, whose order does not matter."""
    return base64.b64encode(b"".join(sorted({each[:_BYTES] for each in digests}))).decode()


def among(provenance: Mapping[str, Any], digests: Iterable[bytes]) -> int:
    """How many of the digests are of images that the model was trained on; none where its file does
    not say.

    Raises:
        InputError: the field is damaged.
    """
    known = _unpacked(provenance)
    return sum(each[:_BYTES] in known for each in digests)


def summary(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance with the number of digests in their place, for people."""
    return {**provenance, FIELD: len(_unpacked(provenance))} if FIELD in provenance else dict(provenance)


def _unpacked(provenance: Mapping[str, Any]) -> set[bytes]:
    try:
        content = base64.b64decode(provenance.get(FIELD, ""), validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(f"provenance.{FIELD}: is damaged ({error})") from error
    if len(content) % _BYTES:
        raise InputError(f"provenance.{FIELD}: is damaged ({len(content)} bytes, expected a multiple of {_BYTES})")
    return {content[at : at + _BYTES] for at in range(0, len(content), _BYTES)}
