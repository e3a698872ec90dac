"""What an export says of itself: every field that Python checks is checked by the engine's own
reader.
"""

import base64

import numpy as np
import pytest

from sprfast.method import threshold
from support.scoring_mode_cases import field


def encoded(values):
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


FIELD = field(32, 32).to_json()
CALIBRATED = threshold.calibrate(np.linspace(0.8, 1.0, 20), 0.1).to_json()
MANUAL = {"value": 0.5, "source": "manual"}
MAP_THRESHOLD = {"value": 0.5, "samples": 3, "false_pixel_rate": 0.1}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("network", [None, {"base_width": 33}, {"base_width": 64.0}, {"base_width": 1056}, {"embedding_dim": 7}]),
        (
            "schedule",
            [
                None,
                {"levels": []},
                {"levels": [{}] * 65},
                {"levels": {}},
                {"levels": [{"draws": 0}]},
                {"levels": [{"draws": True}]},
                {"levels": [{"t": 0.9e-8}]},
                {"levels": [{"t": "1"}]},
                {"levels": [{"weight": 0}]},
                {"levels": [{"weight": 1e308}] * 2},
                {"levels": [{"draws": 1}], "noise": "loud"},
                {"noise": "antithetic"},
                {"antithetic": "yes"},
                {"noise": "none"},
                {"noise": None},
            ],
        ),
        (
            "preprocessing",
            [
                "fit",
                {"size": 15},
                {"size": 4097},
                {"size_policy": "crop"},
                {"bit_depth": 7},
                {"alpha": 1},
                {"orientation": "up"},
                {"frames": "all"},
                {"profiles": "keep"},
                {"max_pixels": 2**31 + 1},
            ],
        ),
        ("tile", [15, 16, 4097, 64.0, "64"]),  # 16 is without a window
        ("window", [0, -1, 4097, 2**64, 8.0, True, "8", [8]]),
        ("noise_seed", [None, -1, 2**32, 2**64, 1.0, True, "0"]),
        (
            "threshold",
            [
                0.5,
                {"value": 0.5},
                {"source": "manual"},
                {"value": "high", "source": "manual"},
                {"value": 0.5, "source": "guessed"},
                {"value": 0.5, "source": "calibrated"},
                MANUAL | {"samples": 1},
                MANUAL | {"rank": 1},
                MANUAL | {"rank": 0.0},
                MANUAL | {"false_reject_rate": 1e-9},
                MANUAL | {"scores": [0.1]},
                CALIBRATED | {"samples": 0},
                CALIBRATED | {"samples": 20.0},
                CALIBRATED | {"false_reject_rate": 1},
                CALIBRATED | {"rank": 0},
                CALIBRATED | {"rank": 21},
                CALIBRATED | {"samples": 10**30, "rank": 10**30 + 1, "scores": []},
                CALIBRATED | {"scores": [0.5]},
                CALIBRATED | {"scores": list(range(20, 0, -1))},
                CALIBRATED | {"scores": [None] * 20},
                CALIBRATED | {"scores": "none"},
            ],
        ),
        (
            "field",
            [
                0.5,
                [],
                {},
                FIELD | {"samples": 0},
                FIELD | {"samples": 1.0},
                FIELD | {"shape": [32, 31]},
                FIELD | {"shape": [32.0, 32]},
                FIELD | {"shape": [True, 1024]},
                FIELD | {"shape": [-1, 32]},
                FIELD | {"shape": [2**70, 32]},
                FIELD | {"shape": "ab"},
                FIELD | {"shape": [1025, 1], "expected": encoded(np.ones(1025))},
                FIELD | {"shape": [0, 0], "expected": ""},
                FIELD | {"expected": "?"},
                FIELD | {"expected": None},
                FIELD | {"expected": encoded(np.zeros(1024))},
                FIELD | {"expected": encoded(np.full(1024, np.inf))},
            ],
        ),
        (
            "map_threshold",
            [
                0.5,
                {},
                MAP_THRESHOLD | {"samples": 0},
                MAP_THRESHOLD | {"false_pixel_rate": 1.0},
                MAP_THRESHOLD | {"false_pixel_rate": 0},
                MAP_THRESHOLD | {"value": None},
            ],
        ),
        ("model_sha256", [None, 7, "", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n"]),
        ("precision", [None, "float64", 16, ["float16"], {}]),
        ("quantization", ["int4", 8, False, ["int8"]]),
        ("size", [16, "16", [16], [16, 20, 3], [15, 20], [16, 2**16 + 1], [16.0, 20], [True, 20], {"a": 16}]),
        ("batch", [0, 4097, 1.0, True, "1", [1]]),
        ("probe", [None, [], 1.0]),
        ("certificates", [None, {}, "none", [None], [["by"]]]),
        ("trained_on", [None, 1, []]),
        ("category", [None, 1, []]),
    ],
)
def test_a_wrong_field_is_named(both, sample, name, values):
    for value in values:
        assert f": {name}" in both(sample.with_document(**{name: value})).replace(f"field '{name}", f": {name}")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("network", [{"base_width": 32}, {"base_width": 32, "embedding_dim": 4096, "more": []}]),
        ("schedule", [{"levels": [{"t": 1, "draws": 2, "weight": 3}]}, {"levels": [{"draws": 2}], "antithetic": 0.0}]),
        ("preprocessing", [{}, {"max_pixels": 1}]),
        ("noise_seed", [0, 2**32 - 1]),
        (
            "threshold",
            [
                None,
                MANUAL,
                MANUAL | {"value": 10**63, "scores": []},
                MANUAL | {"value": 5e-324, "false_reject_rate": -0.0},
                CALIBRATED | {"scores": []},
                CALIBRATED | {"scores": [1] * 20},
                CALIBRATED | {"samples": 10**30, "rank": 10**30, "scores": [0.25] * 1024},
            ],
        ),
        ("field", [None, FIELD, FIELD | {"shape": [1, 1024], "samples": 10**30}]),
        ("map_threshold", [None, MAP_THRESHOLD]),
        ("window", [None, 1, 4096]),
        ("precision", ["float16", "bfloat16"]),
        ("quantization", ["int8"]),
        ("size", [None, [32, 32]]),
        ("batch", [1, 4096]),
        ("certificates", [[], [{"deep": [[[{}]]]}]]),
        ("trained_on", ["?"]),
        ("category", ["", "螺丝"]),
    ],
)
def test_every_allowed_field_is_taken(both, sample, name, values):
    for value in values:
        assert both(sample.with_document(**{name: value})) is None, value


def test_tiles_are_taken_with_a_window(both, sample):
    for tile in (32, 4096):
        assert both(sample.with_document(window=8, tile=tile)) is None
    assert "tile: 32 needs a window too" in both(sample.with_document(tile=32))


def test_the_probe_is_of_the_size_that_is_exported(both, sample):
    assert "probe: 32x32 pixels (height x width), the export takes 16x20 only" in both(
        sample.with_document(size=[16, 20])
    )


def test_a_missing_field_is_named(both, sample):
    for name in sample.document:
        found = both(sample.forged(lambda header, manifest, data, name=name: manifest["document"].pop(name)))
        optional = ("field", "map_threshold", "window", "tile", "trained_on", "category")
        assert found is None if name in optional else f"'{name}' is missing" in found


MAP = np.random.default_rng(0).random((16, 20), np.float32) + 0.5
PROBE = {"shape": [16, 20], "error_map": encoded(MAP), "tolerance": 0.1}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("shape", [None, 16, [16], [15, 20], [20, 16.0], [16, 21], [20, 20], [2**16, 2**16], [16, 2**16 + 1]]),
        (
            "error_map",
            [
                None,
                7,
                "",
                "?",
                "\u00e9",
                encoded(MAP)[:-4],
                encoded(MAP[:-1]),
                encoded(MAP * np.nan),
                encoded(MAP * -0.0),
            ],
        ),
        ("tolerance", [None, 0, 1, 0.0, 1.0, -0.1, "0.1", True]),
    ],
)
def test_a_wrong_field_of_the_probe_is_named(both, sample, name, values):
    for value in values:
        assert "probe." in both(sample.with_document(probe=PROBE | {name: value}))
    given = {key: value for key, value in PROBE.items() if key != name}
    assert f"'probe.{name}' is missing" in both(sample.with_document(probe=given))
