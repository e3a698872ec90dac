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
