"""Names in figures: never taken for mathematics, in fonts that have their characters."""

from __future__ import annotations

import functools
from typing import Any

from sprfast.data.images import display_name


def lettered(text: str, family: str = "sans-serif") -> tuple[str, dict[str, Any]]:
    """`text` as it can be drawn, one line, and the options of matplotlib's text that draw it so.

    Characters that the font of `family` lacks are taken from the first installed font that has
    them; where none has, their code points are drawn as escapes.
    """
    from matplotlib import font_manager

    default = font_manager.findfont(font_manager.FontProperties(family=[family]))
    fonts: dict[str, str] = {family: default}
    drawn = ""
    for character in display_name(text):
        known = any(ord(character) in _characters(path) for path in fonts.values())
        if not known and (found := _font_with(ord(character))):
            fonts |= [found]
            known = True
        drawn += character if known else character.encode("ascii", "backslashreplace").decode()
    return drawn, {"family": list(fonts), "parse_math": False}


@functools.lru_cache
def _font_with(code_point: int) -> tuple[str, str] | None:
    """Family and file of the first font with the character, upright and of regular weight first."""
    from matplotlib import font_manager

    def key(entry: font_manager.FontEntry) -> tuple[bool, int, str]:
        weight = entry.weight if isinstance(entry.weight, int) else font_manager.weight_dict.get(entry.weight, 400)
        return entry.style != "normal", abs(weight - 400), entry.name

    for entry in sorted(font_manager.fontManager.ttflist, key=key):
        # one of boxes for everything comes with matplotlib
        if "lastresort" not in entry.name.replace(" ", "").lower() and code_point in _characters(entry.fname):
            return entry.name, entry.fname
    return None


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has; none where it cannot be used."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(path)
        return frozenset(font.get_charmap() if font.scalable else ())
    except (RuntimeError, OSError):  # a damaged file, or one that is gone
        return frozenset()
