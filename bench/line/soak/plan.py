"""What befalls each frame of a soak run, decided before it begins."""

from __future__ import annotations

import enum
import itertools
import re

import numpy as np

from sprfast.errors import InputError
from sprfast.line.sources import Fault

_ID = re.compile(r"soak(\d+)-(\d+)")  # the name of a producer's camera, and the picture's number


class LineFault(str, enum.Enum):
    """What goes wrong between a good camera and the line."""

    PAST_DEADLINE = "past_deadline"  # the frame comes when its deadline has passed
    DUPLICATE_ID = "duplicate_id"  # the frame is submitted again under its id
    MISSING_FILE = "missing_file"  # a path without a file
    TRUNCATED_FILE = "truncated_file"  # half a PNG
    WRONG_DTYPE = "wrong_dtype"  # int32
    NAN_VALUES = "nan_values"  # float32, with a pixel that is no number
    WRONG_CHANNEL_ORDER = "wrong_channel_order"  # colour that is declared grey

    def __str__(self) -> str:
        return self.value


class CallbackFault(str, enum.Enum):
    """What the caller's own code does at an answer; the answers are none the worse."""

    RAISES = "raises"
    HANGS = "hangs"  # for a while
    EXITS = "exits"  # it raises SystemExit
    DONE_RAISES = "done_raises"  # a done-callback of the future
    DONE_HANGS = "done_hangs"
    DONE_EXITS = "done_exits"

    def __str__(self) -> str:
        return self.value


CALLBACKS = 0.01  # share of the frames at whose answer a callback misbehaves, where there are faults
Kind = Fault | LineFault
KINDS: tuple[Kind, ...] = (*Fault, *LineFault)
TWICE = (Fault.REPEAT, Fault.REORDER, LineFault.DUPLICATE_ID)  # whose id comes again, and must be refused then


def error_of(kind: Kind | None) -> str | None:
    """The kind of the error that a frame must be answered with, one of `health.KINDS`; None: it
    must have its score.
    """
    if kind in (None, LineFault.DUPLICATE_ID):
        return None
    if isinstance(kind, Fault):
        return "camera" if kind.spoils else None
    return "deadline" if kind is LineFault.PAST_DEADLINE else "input"


class FaultPlan:
    """The faults of all producers' frames, and of the callbacks at their answers; frames are
    counted over all producers, one producer after another.

    Args:
        frames: of all producers together.
        producers: that share them evenly.
        rate: of faults; there is at least one of each kind, unless it is 0.
        seed: of where they are.

    Raises:
        InputError: there are too few frames for the producers or the faults.
    """

    def __init__(self, frames: int, producers: int, rate: float, seed: int) -> None:
        self.counts = [frames // producers + (producer < frames % producers) for producer in range(producers)]
        self._starts = np.cumsum([0, *self.counts[:-1]]).tolist()
        inner = [
            np.arange(start + 1, start + count - 1) for start, count in zip(self._starts, self.counts, strict=True)
        ]
        # the first and the last picture of a camera are good, so that it can tell what lies between
        places = np.concatenate(inner)
        faults = max(round(frames * rate), len(KINDS)) if rate else 0
        if min(self.counts) < 3 or faults > len(places):
            needed = f"{producers} producers and {faults} faults, there are {len(KINDS)} kinds of them"
            raise InputError(f"frames: {frames} are too few for {needed}")
        self._codes = np.zeros(frames, np.uint8)  # 0: a good frame
        random = np.random.default_rng(seed)
        self._codes[random.choice(places, faults, replace=False)] = 1 + np.arange(faults) % len(KINDS)
        callbacks = max(round(frames * CALLBACKS), len(CallbackFault)) if rate else 0
        chosen = random.choice(places, callbacks, replace=False)
        self._callbacks = dict(zip(chosen.tolist(), itertools.cycle(CallbackFault), strict=False))

    @staticmethod
    def camera(producer: int) -> str:
        """The name of its camera."""
        return f"soak{producer}"

    def place(self, id: object) -> tuple[int, int] | None:
        """The frame with this id, counted over all and among its producer's; None: there is no such
        id.
        """
        match = _ID.fullmatch(str(id))
        if not match:
            return None
        producer, number = int(match[1]), int(match[2])
        known = producer < len(self.counts) and number < self.counts[producer]
        return (self._starts[producer] + number, number) if known else None

    def kind(self, frame: int) -> Kind | None:
        """What befalls it."""
        code = int(self._codes[frame])
        return KINDS[code - 1] if code else None

    def callback(self, frame: int) -> CallbackFault | None:
        """What a callback does at its answer."""
        return self._callbacks.get(frame)

    def camera_faults(self, producer: int) -> dict[int, Fault]:
        """What befalls it in its camera, by number among the producer's."""
        start, count = self._starts[producer], self.counts[producer]
        numbers = np.flatnonzero(self._codes[start : start + count]).tolist()
        return {number: kind for number in numbers if isinstance(kind := self.kind(start + number), Fault)}
