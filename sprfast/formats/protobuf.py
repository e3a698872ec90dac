"""The part of protobuf's wire format that it takes to look into an ONNX file, without a library."""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _LENGTH_DELIMITED = 0, 2  # wire types; ONNX's own messages have no others


def fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, start, start of the value, and end of each field of a message.

    Raises:
        IndexError, ValueError: this is no such message.
    """
    while at < end:
        start = at
        key, body = varint(content, at)
        if key & 7 == _LENGTH_DELIMITED:
            length, body = varint(content, body)
            at = body + length
        elif key & 7 == _VARINT:
            _, at = varint(content, body)
        else:
            raise ValueError("a field of another type than these messages have")
        if at > end:
            raise ValueError("a field ends behind its message")
        yield key >> 3, start, body, at


def varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next field begins.

    Raises:
        IndexError, ValueError: it is cut short, or longer than any is.
    """
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def delimited(number: int, content: bytes) -> bytes:
    """A field that holds bytes, text or a message."""
    return encoded(number << 3 | _LENGTH_DELIMITED) + encoded(len(content)) + content


def encoded(value: int) -> bytes:
    """A number as `varint` reads it."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
