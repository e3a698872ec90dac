"""What the tests of scoring modes share: a model that holds two of them."""

import dataclasses

import numpy as np

from sprfast.config import Level, Schedule
from sprfast.method.error_field import ErrorField
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import MapThreshold, calibrate

QUICK = Schedule((Level(5e-4, 1),), noise="signs")
WINDOW = 6  # network pixels; on a side of 32 it averages 49 of 256 places, more than the published one


def field(height=32, width=32, seed=0):
    """Of about the size of `small_model`'s errors, so that scores are about 1, and different at
    every place.
    """
    return ErrorField(0.008 + 0.006 * np.random.default_rng(seed).random((height, width), np.float32), 12)


def with_mode(given, **parts):
    """A model, or the metadata of an export, with some parts of its scoring mode replaced."""
    return dataclasses.replace(given, scoring_mode=dataclasses.replace(given.scoring_mode, **parts))


def with_settings(model):
    """`model` with the setting `quick`, which has a field, both thresholds and a window."""
    quick = ScoringMode(QUICK, field(), calibrate(np.linspace(0.8, 1.0, 20), 0.1), MapThreshold(0.01, 20, 0.1), WINDOW)
    return dataclasses.replace(model, scoring_modes={"quick": quick})
