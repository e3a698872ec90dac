"""Text in a terminal: what comes from a file, a folder or a report is shown as it is."""

from __future__ import annotations

import errno
from typing import Any

from rich.console import Console
from rich.text import Text


class Terminal(Console):
    """A console that takes no text for markup or for the name of an emoji.

    Every cell, title and line that is printed through it as a string is `shown`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, *args: Any, **options: Any) -> Text:
        """`text` without markup, as it can be printed here."""
        return super().render_str(shown(text, self.encoding), *args, **options)

    def on_broken_pipe(self) -> None:
        """Leave with the error where the reader of the answer is gone; without a reader of what is
        said beside it the work goes on.
        """
        self.quiet = True
        if not self.stderr:
            raise BrokenPipeError(errno.EPIPE, "the reader is gone")


def shown(text: str, encoding: str = "utf-8") -> str:
    r"""`text` with escapes for what would not be seen: control characters, bytes of a name that are
    not UTF-8 (`\x..`), and what `encoding` lacks.
    """
    seen = "".join(each if each.isprintable() or each == "\n" else _escape(each) for each in text)
    return seen.encode(encoding, "backslashreplace").decode(encoding)


def _escape(character: str) -> str:
    undecoded = ord(character) - 0xDC00  # Python keeps such a byte as a surrogate
    return rf"\x{undecoded:02x}" if 0x80 <= undecoded <= 0xFF else character.encode("unicode_escape").decode("ascii")
