"""The id of each trigger, from the camera's own count or, where it has none, from ours."""

from __future__ import annotations

MOST = 1000  # missing pictures in a row that are named one by one; and how late one may come
LAST_OF_16_BITS = 65_535  # after which GigE Vision 1 counts on from 1


class Ids:
    """Ids `NAME-NUMBER`, and `NAME-NUMBER@2` and so on where a camera's count has begun anew.

    A number above all before it goes on with the count, also over a reconnection; what lies between
    is missing. After a reconnection any other number is the first of a new count; so is one that is
    lower by more than `MOST` at any time, as when 16 bits are used up. Any other lower number is a
    late or a repeated picture, and has the id that it had or would have had.

    What happens before the first picture has ids `NAME-1@0`, `NAME-2@0` and so on.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 1  # how many times counting has begun
        self._highest: int | None = None  # None: before the first picture
        self._before = 0  # ids given before that
        self.reopened = False  # the camera was connected again, and no picture has come since

    def picture(self, number: int | None) -> str:
        """The id of a picture, after `missing` was asked; None: the camera does not count."""
        if number is None:
            number = self._highest = (self._highest or 0) + 1
        return self._id(number)

    def missing(self, number: int) -> list[tuple[str, str]]:
        """Ids and names of the pictures that were lost before this one; more than `MOST` in a row
        are one.
        """
        reopened, self.reopened = self.reopened, False
        highest = self._highest
        if highest is None or number > highest:
            self._highest = number
            return [] if highest is None else self._span(highest + 1, number - 1)
        if not reopened and highest - number <= MOST:
            return []
        wrapped = not reopened and LAST_OF_16_BITS - highest in range(MOST)
        rest = self._span(highest + 1, LAST_OF_16_BITS) if wrapped else []
        self._count += 1
        self._highest = number
        return rest if reopened or number > MOST else rest + self._span(1, number - 1)

    def skip(self, count: int) -> list[tuple[str, str]]:
        """Ids and names of the next `count` triggers, of which there is no picture; more than
        `MOST` are one.
        """
        if self._highest is None:
            first = self._before + 1
            self._before += count
            return [(f"{self._name}-{number}@0", "a picture") for number in range(first, first + count)]
        first = self._highest + 1
        self._highest += count
        return self._span(first, self._highest)

    def _id(self, number: int) -> str:
        return f"{self._name}-{number}" + (f"@{self._count}" if self._count > 1 else "")

    def _span(self, first: int, last: int) -> list[tuple[str, str]]:
        if last - first >= MOST:
            return [(self._id(first), f"pictures {first} to {last}")]
        return [(self._id(number), f"picture {number}") for number in range(first, last + 1)]
