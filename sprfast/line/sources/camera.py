"""What a source gives, and what an adapter for a camera implements."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

from sprfast.data.images import ChannelOrder
from sprfast.errors import CameraError
from sprfast.line.frames import Frame


class Source(Protocol):
    """Frames, one for each trigger."""

    def __iter__(self) -> Iterator[Frame]:
        """The frames as they come; one iteration at a time."""
        ...

    def fault(self) -> str:
        """Why no frames can come now, in a sentence; "" while they can."""
        ...

    def close(self) -> None:
        """End the iteration soon; may be called from another thread or a signal handler, and
        again.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """What a camera delivered for one trigger."""

    image: Any  # an array or a raw buffer that the camera does not write to again; None with a `fault`
    # the camera's own counter, which grows by one with each trigger; None: it has none, or it is
    # not known
    number: int | None
    trigger_time: float  # seconds of `time.monotonic`
    channel_order: ChannelOrder | None = None  # as delivered; None: as declared
    fault: CameraError | None = None  # why there is no whole picture


class Camera(Protocol):
    """One connection to a camera; once it has failed, a new one is opened. Errors name no
    password.
    """

    def grab(self, timeout: float) -> Picture | None:
        """The next picture, in the order in which they came.

        Args:
            timeout: seconds to wait for it.

        Returns:
            None where none came in time. A picture that is not whole has a `fault`, and its number
            where that is known.

        Raises:
            CameraError: the connection is lost; no later call succeeds.
            EOFError: there will be no more pictures, as at the end of a recording.
        """
        ...

    def close(self) -> None:
        """Let the camera go; never raises, and may be called after an error."""
        ...
