import json
import math

import numpy as np
import pytest

from sprfast.config import Schedule
from sprfast.errors import InputError
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import MapThreshold, calibrate, manual
from support.scoring_mode_cases import QUICK, field

MARKED = MapThreshold(0.0125, 20, 0.1)
SCORES = calibrate(np.linspace(0.5, 1.0, 40), 0.1)


def filled():
    return ScoringMode(QUICK, field(20, 31), SCORES, MARKED, 8, 192)


def test_the_default_is_the_published_score_without_thresholds():
    setting = ScoringMode()
    assert setting.schedule == Schedule()
    assert setting.error_field is setting.threshold is setting.map_threshold is setting.map_value is None


def test_the_score_is_the_maximum_of_the_map_or_by_the_field():
    rng = np.random.default_rng(0)
    errors, anomalies = rng.random((20, 31), np.float32), rng.random((256, 256), np.float32)
    assert ScoringMode().score(errors, anomalies) == float(anomalies.max())
    assert filled().score(errors, anomalies) == field(20, 31).score(errors, 8) != field(20, 31).score(errors)
    assert filled().score(errors, anomalies) != ScoringMode().score(errors, anomalies)


def test_what_is_not_a_number_stays_none_in_the_score():
    errors, anomalies = np.ones((20, 31), np.float32), np.ones((256, 256), np.float32)
    errors[3, 4] = anomalies[7, 7] = math.nan
    assert math.isnan(ScoringMode().score(errors, anomalies))
    assert math.isnan(filled().score(errors, anomalies))


@pytest.mark.parametrize(
    ("has_field", "threshold", "marked", "value"),
    [
        (False, None, None, None),
        (False, manual(0.5), None, 0.5),  # the published one, whose score is in the units of its map
        (False, manual(0.5), MARKED, 0.0125),
        (False, None, MARKED, 0.0125),
        (True, manual(0.5), None, None),  # a quotient says nothing of the map
        (True, manual(0.5), MARKED, 0.0125),
        (True, None, None, None),
    ],
)
def test_pixels_are_marked_above_the_maps_own_threshold_or_the_scores_where_that_has_its_units(
    has_field, threshold, marked, value
):
    assert (
        ScoringMode(error_field=field() if has_field else None, threshold=threshold, map_threshold=marked).map_value
        == value
    )


def test_a_threshold_of_zero_is_one():
    assert ScoringMode(threshold=manual(0.0)).map_value == 0.0
    assert ScoringMode(threshold=manual(3.0), map_threshold=MapThreshold(0.0, 20, 0.1)).map_value == 0.0


def test_json_and_back():
    got = ScoringMode.from_json(json.loads(json.dumps(filled().to_json(), allow_nan=False)))
    assert (got.schedule, got.threshold, got.map_threshold, got.window, got.tile) == (QUICK, SCORES, MARKED, 8, 192)
    assert got.error_field.expected.tobytes() == filled().error_field.expected.tobytes()
    for given in (ScoringMode(), ScoringMode(QUICK, threshold=manual(1.0)), ScoringMode(map_threshold=MARKED)):
        assert ScoringMode.from_json(json.loads(json.dumps(given.to_json()))) == given


def test_a_part_that_a_file_does_not_have_is_absent():
    document = json.loads(json.dumps(ScoringMode(QUICK).to_json()))
    assert ScoringMode.from_json({"schedule": document["schedule"]}) == ScoringMode(QUICK)


def test_what_is_looked_at_has_neither_the_field_nor_the_scores():
    summary = filled().summary()
    assert summary["field"] == {"shape": [20, 31], "samples": 12}
    assert summary["threshold"] == SCORES.summary()
    assert summary["map_threshold"] == MARKED.to_json()
    assert summary["schedule"] == QUICK.to_json()
    assert len(json.dumps(summary)) < 600
    assert ScoringMode().summary() == ScoringMode().to_json()


@pytest.mark.parametrize("document", [None, 5, "quick", [], ["schedule"]])
def test_what_is_not_an_object_is_an_input_error(document):
    with pytest.raises(InputError, match=r"^setting: expected an object"):
        ScoringMode.from_json(document)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"schedule": None}, "Schedule"),
        ({"schedule": {"levels": []}}, "levels"),
        ({"field": 0}, "error field"),
        ({"field": {}}, "error field"),
        ({"threshold": 0}, "Threshold"),
        ({"threshold": {"value": 1.0}}, "Threshold.source"),
        ({"map_threshold": 0.5}, "MapThreshold"),
        *(({"window": value}, "^window: ") for value in (0, 4097, 8.0, True, "8", [8])),
        *(({"tile": value}, "^tile: ") for value in (15, 4097, 64.0, "64")),
        ({"window": None}, "^tile: 192 needs a window too"),
        ({"map_threshold": MARKED.to_json() | {"false_pixel_rate": 1.0}}, "false_pixel_rate"),
    ],
)
def test_a_wrong_part_is_an_input_error_that_names_it(change, match):
    with pytest.raises(InputError, match=match):
        ScoringMode.from_json(json.loads(json.dumps(filled().to_json())) | change)
