"""What is asked of `calibrate`: which images, which rates, and which setting."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sprfast.config import PUBLISHED, Schedule
from sprfast.errors import InputError

if TYPE_CHECKING:
    from sprfast.evaluation.calibration import Setting
    from sprfast.method.scoring_mode import ScoringMode

AUTO = "auto"  # the --setting that is chosen


@dataclasses.dataclass(frozen=True)
class Request:
    """What to calibrate, and on what."""

    good: Path | None  # folder of good images; None: the threshold is `by_hand`, or the images are `held_back`
    false_reject_rate: float | None = None  # None: 0.001, or the lowest that the images allow
    # None: where the score has an error field, that of rejects; else the map has no threshold
    false_pixel_rate: float | None = None
    by_hand: float | None = None
    setting: str = PUBLISHED
    fit: Path | None = None  # folder of good images to fit a setting on; None: every other one of `good`
    # of a new setting, or other levels for one of `calibration.SETTINGS`; None: it is one of these
    schedule: Schedule | None = None
    field: bool = False  # of a new setting: its score is divided by an error field
    # of a new setting: its levels are weighted so that their error maps have one mean over good
    # images
    balance: bool = False
    window: int | None = None  # of a new setting, or of one of `calibration.SETTINGS`, see `ScoringMode`
    tile: int | None = None  # likewise
    force: bool = False  # take good images that were trained on
    held_back: bool = False  # take those that the training held back, which are in `good` or where they were
    bad: tuple[Path, ...] = ()  # folders of bad images to try the threshold on
    recursive: bool = False  # read the folders in folders of images too

    def __post_init__(self) -> None:
        from sprfast.evaluation import calibration
        from sprfast.method.scoring_mode import refuse_gone

        refuse_gone(self.setting)
        if (self.good is None and not self.held_back) == (self.by_hand is None):
            raise InputError("calibrate: give either GOOD_DIR or --threshold, or --held-back")
        if self.by_hand is not None and (self.fit or self.changed or self.false_pixel_rate is not None):
            raise InputError(
                "calibrate: a --threshold by hand goes without --fit, --level, --window, --tile and --false-pixel-rate"
            )
        if self.setting == AUTO and (self.by_hand is not None or self.changed):
            raise InputError(
                "calibrate: --setting auto goes without --threshold, --level, --window and --tile, it chooses "
                "among named settings"
            )
        if self.setting == PUBLISHED and (self.fit or self.changed):
            raise InputError(
                "calibrate: --fit, --level, --window and --tile are for a --setting other than the published one, "
                "which is as it is"
            )
        if (self.field or self.balance) and not self.schedule:
            raise InputError("calibrate: --field and --balance are for a new --setting, give its --level too")
        if (self.field or self.balance) and self.setting in calibration.SETTINGS:
            raise InputError(f"calibrate: --field and --balance are for a new --setting, {self.setting} has its own")

    def as_stored(self, mode: ScoringMode) -> Request:
        """The same with levels, window and tile of the setting's `mode` in a file."""
        from sprfast.evaluation import calibration

        if self.setting == PUBLISHED:
            return self
        fielded = self.setting not in calibration.SETTINGS and mode.error_field is not None
        return dataclasses.replace(self, schedule=mode.schedule, field=fielded, window=mode.window, tile=mode.tile)

    @property
    def changed(self) -> bool:
        """Whether something of a setting is given."""
        return any(each is not None for each in (self.schedule, self.window, self.tile))

    def made_of(self) -> Setting:
        """The setting that is asked for: one that has a name, with other levels or another window
        where they are given, or a new one.
        """
        from sprfast.evaluation import calibration

        named = calibration.SETTINGS.get(self.setting)
        if named:
            levels = self.schedule.levels if self.schedule else named.schedule.levels
            schedule = dataclasses.replace(named.schedule, levels=levels)
            return dataclasses.replace(named, schedule=schedule, window=self.window, tile=self.tile)
        if self.changed:
            return calibration.Setting(self.schedule or Schedule(), self.field, self.balance, self.window, self.tile)
        known = ", ".join((PUBLISHED, *calibration.SETTINGS))
        raise InputError(
            f"--setting {self.setting}: known are {known}; give --level, --window or --tile to make another one"
        )
