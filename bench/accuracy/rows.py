"""The ways of scoring that a study compares."""

from __future__ import annotations

import dataclasses

from sprfast.config import PUBLISHED, Level, Noise, Schedule


@dataclasses.dataclass(frozen=True)
class StudyRow:
    """One way of scoring."""

    name: str
    schedule: Schedule
    field: bool = False  # the score is divided by the error field of good images
    independent: bool = False  # every image has draws of its own, as in the published code
    balanced: bool = False  # the levels are weighted so that their error maps have one mean over good images


def _at(noise: Noise, *levels: tuple[float, int]) -> Schedule:
    return Schedule(tuple(Level(t, draws) for t, draws in levels), noise)


def _both(name: str, schedule: Schedule, *, balanced: bool = False) -> tuple[StudyRow, StudyRow]:
    return StudyRow(name, schedule, balanced=balanced), StudyRow(
        f"{name}, field", schedule, field=True, balanced=balanced
    )


ROWS: tuple[StudyRow, ...] = (
    *_both(PUBLISHED, Schedule()),
    StudyRow("independent draws, K = 3", Schedule(), independent=True),
    StudyRow("independent draws, K = 1", _at("gaussian", (1e-3, 1)), independent=True),
    *_both("K = 1", _at("gaussian", (1e-3, 1))),
    *_both("K = 2", _at("gaussian", (1e-3, 2))),
    *_both("t = 0.01, K = 1", _at("gaussian", (1e-2, 1))),
    *_both("signs, t = 0.001", _at("signs", (1e-3, 1))),
    *_both("signs, t = 0.0008", _at("signs", (8e-4, 1))),
    *_both("signs, t = 0.0002", _at("signs", (2e-4, 1))),
    *_both("no noise, t = 0.001", _at("none", (1e-3, 1))),
    *_both("no noise, t = 0.01", _at("none", (1e-2, 1))),
    *_both("no noise, t = 0.03", _at("none", (3e-2, 1))),
    *_both("no noise, t = 0.1", _at("none", (1e-1, 1))),
    *_both("levels 0.001 and 0.01, K = 1", _at("gaussian", (1e-3, 1), (1e-2, 1)), balanced=True),
    *_both("levels 0.001, 0.01 and 0.1, no noise", _at("none", (1e-3, 1), (1e-2, 1), (1e-1, 1)), balanced=True),
)
