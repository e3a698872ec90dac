"""What a soak run is asked to do."""

from __future__ import annotations

import dataclasses

from sprfast.config import require

# frames, at most half: a line remembers 10,000 ids, and is the fullest that it ever is only after a
# while
WARM_UP = 50_000


@dataclasses.dataclass(frozen=True)
class SoakOptions:
    """How long, and how rough.

    Raises:
        InputError: a value is out of range.
    """

    frames: int = 100_000
    faults: float = 0.01  # share of the frames
    producers: int = 4  # threads that submit
    warm_up: int | None = None  # frames before the first sample that counts; None: `WARM_UP`, at most half of all
    seed: int = 0  # of pictures and faults

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("frames", self.frames, 1, 10**9),
            ("producers", self.producers, 1, 256),
            ("warm_up", self.warm_up, 0, self.frames - 1),
            ("faults", self.faults, 0.0, 1.0),
        ):
            require(value is None or least <= value <= most, name, value, f"{least} to {most}")

    @property
    def warm_up_frames(self) -> int:
        """Frames before the first sample that counts."""
        return min(WARM_UP, self.frames // 2) if self.warm_up is None else self.warm_up
