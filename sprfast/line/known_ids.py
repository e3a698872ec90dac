"""The ids in a line and those answered last, so that one which is used again is refused.

An id is the caller's object: its hash, its comparison and its text are the caller's code and may
change. They are asked once, in `submit`, on the caller's thread and under no lock. Afterwards the
line knows an id by the `Claim` on it, which it finds by identity.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Hashable

from sprfast.errors import InputError

REMEMBERED = 10_000  # ids that were answered last, which are refused like those in the line


@dataclasses.dataclass(eq=False, slots=True)
class Claim:
    """An id as it was when it came."""

    id: Hashable
    hash: int
    text: str  # for messages
    answered: bool = False


def claim_on(id: Hashable) -> Claim:
    """A claim that is not taken yet.

    Raises:
        InputError: the id cannot be hashed or written out.
    """
    try:
        return Claim(id, hash(id), str(id)[:100])
    except Exception as error:
        raise InputError(
            f"id: {type(id).__name__} is not allowed, expected a string, a number or another hashable value"
        ) from error


class KnownIds:
    """Claims by the hash that their ids had; safe to call from several threads and signal
    handlers.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._claims: dict[int, list[Claim]] = {}
        self._answered: collections.deque[Claim] = collections.deque()

    def take(self, claim: Claim) -> None:
        """Make a claim; of two equal ids that come at once, the later one is refused.

        Raises:
            InputError: an equal id is known, or ids cannot be compared.
        """
        with self._lock:
            same = self._claims.setdefault(claim.hash, [])
            others = tuple(same)
            same.append(claim)
        try:
            for other in others:
                if other.id is claim.id or other.id == claim.id:
                    where = "was answered" if other.answered else "is in the line"
                    raise InputError(f"id {_shown(claim)}: {where} already; every frame needs an id of its own")
        except BaseException as error:
            self.drop(claim)
            if isinstance(error, Exception) and not isinstance(error, InputError):
                raise InputError(f"id: {type(claim.id).__name__} cannot be compared with other ids") from error
            raise

    def drop(self, claim: Claim) -> None:
        """Forget a claim, if it was made."""
        with self._lock:
            left = [each for each in self._claims.pop(claim.hash, ()) if each is not claim]
            if left:
                self._claims[claim.hash] = left

    def remember(self, claim: Claim) -> None:
        """Its frame is answered: forget it after `REMEMBERED` others."""
        with self._lock:
            claim.answered = True
            self._answered.append(claim)
            while len(self._answered) > REMEMBERED:
                self.drop(self._answered.popleft())

    def __len__(self) -> int:
        return sum(map(len, self._claims.values()))


def _shown(claim: Claim) -> str:
    return repr(claim.text if isinstance(claim.id, str) else claim.id)[:100]
