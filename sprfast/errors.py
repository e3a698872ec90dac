"""Every error that sprfast raises on purpose, and the exit code the command line gives it.

A message says what was given, what is allowed and what to do, in one line.
"""


class SprfastError(Exception):
    """Base class; `exit_code` is what the command line exits with."""

    exit_code = 2


class InputError(SprfastError):
    """An image, array, folder or argument that cannot be used; the message names it."""


class ModelFileError(SprfastError):
    """A model file or checkpoint that is damaged, foreign or from a newer version."""


class BackendError(SprfastError):
    """A backend, device or library that cannot run here; the message says what to install."""

    exit_code = 3


class CheckFailedError(SprfastError):
    """A check that ran and did not hold: parity, a diverged training, a regression."""

    exit_code = 1


class OutOfMemoryError(BackendError):
    """The device has no memory for a batch; a smaller one may fit."""


class DeviceLostError(BackendError):
    """The device or its context is gone, and with it all that this process holds there; only a new
    process can go on.
    """


class ScoreError(SprfastError):
    """A score that is not a finite number, as when 16-bit feature maps overflow."""


class CameraError(SprfastError):
    """A camera that cannot be opened, or a trigger without a usable picture."""

    exit_code = 3


class SinkError(SprfastError):
    """An answer that was not given to what hears them, or not in time, although it is connected."""


class OverloadedError(SprfastError):
    """A frame that a full line did not take, or dropped for a newer one."""


class DeadlineExceededError(SprfastError):
    """A frame without an answer at its deadline; what comes later is discarded."""


class ClosedError(SprfastError):
    """A line that takes no frames any more, and the frames that it had not answered when it was
    closed.
    """


class SprfastWarning(UserWarning):
    """What goes on in another way than asked for, in one line; the command line prints it so."""
