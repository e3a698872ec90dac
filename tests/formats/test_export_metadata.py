import base64
import dataclasses
import json
import math

import numpy as np
import pytest

from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import BackendError, InputError
from sprfast.formats.export_metadata import (
    MAX_BATCH,
    QUANTIZED_TOLERANCE,
    TOLERANCE,
    ExportMetadata,
    Probe,
    document_of,
    probe_image,
    tolerance,
)
from sprfast.formats.manifest import FORMAT_VERSION
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import MapThreshold, manual
from support.scoring_mode_cases import field

MAP = np.random.default_rng(0).random((16, 20), np.float32) + 0.5
OPTIONAL = ("quantization", "size", "batch")


def filled():
    """Metadata with something in every field."""
    return ExportMetadata(
        network=NetworkConfig(base_width=32, embedding_dim=8),
        scoring_mode=ScoringMode(
            Schedule((Level(1e-3, 2), Level(0.1, 4, weight=0.5)), noise="antithetic"),
            field(16, 20),
            manual(0.023),
            MapThreshold(0.01, 20, 0.1),
            8,
            20,
        ),
        preprocessing=Preprocessing(size=20, size_policy="stretch", bit_depth=12),
        noise_seed=2**32 - 1,
        model_sha256="0123456789abcdef" * 4,
        precision="float16",
        quantization="int8",
        size=(16, 20),
        batch=4,
        probe=Probe(MAP, 0.1),
        certificates=({"by": "onnxruntime", "rows": [{"value": 0.5}]},),
    )


def document():
    """What a file says of it."""
    return json.loads(json.dumps(filled().to_json(), allow_nan=False))


@pytest.mark.parametrize(
    "change",
    [{}, dict.fromkeys(OPTIONAL) | {"certificates": (), "scoring_mode": ScoringMode()}, {"batch": MAX_BATCH}],
    ids=["everything", "nothing-optional", "largest-batch"],
)
def test_json_and_back(change):
    given = dataclasses.replace(filled(), **change)
    got = ExportMetadata.from_json(json.loads(json.dumps(given.to_json(), allow_nan=False)))
    for each in dataclasses.fields(ExportMetadata):
        if each.name != "probe":
            assert getattr(got, each.name) == getattr(given, each.name), each.name
    assert got.probe.tolerance == given.probe.tolerance
    assert got.probe.error_map.dtype == np.float32
    assert np.array_equal(got.probe.error_map, MAP)


def test_a_document_says_of_which_kind_and_version_it_is():
    given = document_of(filled(), "plan")
    assert (given["kind"], given["format_version"]) == ("plan", FORMAT_VERSION)
    assert ExportMetadata.from_json(json.loads(json.dumps(given))).model_sha256 == filled().model_sha256


def test_an_export_for_tiles_takes_every_image_that_has_tiles_of_its_size():
    given = filled()
    given.require_size((16, 20), "image")
    given.require_size((16, 700), "image")
    with pytest.raises(InputError, match=r"image: 17x700 pixels .*, this export takes 16x20 only"):
        given.require_size((17, 700), "image")


@pytest.mark.parametrize("name", sorted(filled().to_json().keys() - {"field", "map_threshold", "window", "tile"}))
def test_a_missing_field_is_named(name):
    given = document()
    del given[name]
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        ExportMetadata.from_json(given)


def test_what_format_1_did_not_have_is_absent():
    given = document()
    del given["field"], given["map_threshold"], given["window"], given["tile"], given["schedule"]["noise"]
    got = ExportMetadata.from_json({**given, "schedule": given["schedule"] | {"antithetic": True}})
    given = filled()  # which is antithetic
    assert got.scoring_mode == ScoringMode(given.schedule, threshold=given.scoring_mode.threshold)


@pytest.mark.parametrize("name", ["shape", "error_map", "tolerance"])
def test_a_missing_field_of_the_probe_is_named(name):
    given = document()
    del given["probe"][name]
    with pytest.raises(InputError, match=f"'{name}' is missing"):
        ExportMetadata.from_json(given)


def encoded(values):
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("network", [None, {"base_width": 33}, {"base_width": 32, "extra": []} | {"embedding_dim": "8"}]),
        ("schedule", [None, {"levels": []}, {"levels": [{"draws": 0}]}]),
        ("preprocessing", ["fit", {"size": 15}, {"size_policy": "crop"}]),
        ("noise_seed", [None, -1, 2**32, 1.0, True, "0"]),
        ("threshold", [0.5, {"value": 0.5}, {"value": "high", "source": "manual"}]),
        (
            "field",
            [0.5, [], {}, {"shape": [16, 20], "expected": "?", "samples": 3}, field(16, 20).to_json() | {"samples": 0}],
        ),
        ("map_threshold", [0.5, {}, {"value": 0.5, "samples": 0, "false_pixel_rate": 0.1}]),
        ("model_sha256", [None, 7, "", "0" * 63, "0" * 65, "G" * 64, "0" * 64 + "\n"]),
        ("precision", [None, "float64", 16, ["float16"], {}]),
        ("quantization", ["int4", 8, False, ["int8"]]),
        ("size", [16, "16", [16], [16, 20, 3], [15, 20], [16, 2**16 + 1], [16.0, 20], [True, 20], {"height": 16}]),
        ("batch", [0, MAX_BATCH + 1, 1.0, True, "1", [1]]),
        ("probe", [None, [], 1.0]),
        ("certificates", [None, {}, "none", [None], [["by"]]]),
    ],
)
def test_a_wrong_field_is_named(name, values):
    for value in values:
        with pytest.raises(InputError, match=f"^{name}") as caught:
            ExportMetadata.from_json({**document(), name: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("shape", [None, 16, [16], [15, 20], [20, 16.0], [16, 2**16 + 1]]),
        (
            "error_map",
            [None, 7, "", "?", "é", encoded(MAP)[:-4], encoded(MAP[:-1]), encoded(MAP * np.nan), encoded(MAP * 0)],
        ),
        ("tolerance", [None, 0, 0.0, 1.0, -0.1, "0.1", True, math.nan]),
    ],
)
def test_a_wrong_field_of_the_probe_is_named(name, values):
    for value in values:
        given = document()
        given["probe"][name] = value
        with pytest.raises(InputError, match=f"probe.{name}"):
            ExportMetadata.from_json(given)


@pytest.mark.parametrize("shape", [[16, 21], [20, 20], [2**16, 2**16]])
def test_a_probe_of_another_shape_than_it_says_is_refused(shape):
    given = document()
    given["probe"]["shape"] = shape
    with pytest.raises(InputError, match=f"probe.error_map: expected base64 of {shape[0]} x {shape[1]}"):
        ExportMetadata.from_json(given)


def test_the_probe_is_of_the_size_that_is_exported():
    given = {**document(), "size": [20, 16]}
    with pytest.raises(InputError, match=r"probe: 16x20 pixels .*, this export takes 20x16 only"):
        ExportMetadata.from_json(given)
    assert ExportMetadata.from_json({**given, "size": None}).size is None


def test_the_probe_allows_its_tolerance_and_not_more():
    probe = Probe(MAP, 0.01)
    assert probe.check(MAP, "x") == 0.0
    assert probe.check(MAP * 1.0099, "x") == pytest.approx(0.0099, rel=1e-3)
    with pytest.raises(
        BackendError, match=r"^backend x: the error map of the probe image is off by 0.0101 .*allowed 0.01"
    ):
        probe.check(MAP * 1.0101, "backend x")


def test_the_probe_measures_relative_rms():
    got = MAP.copy()
    got[3, 5] += 1.0
    expected = 1.0 / np.linalg.norm(MAP.astype(np.float64))
    assert Probe(MAP, 0.5).check(got, "x") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_pixel_that_is_no_number_fails_the_probe(value):
    got = MAP.copy()
    got[-1, -1] = value
    with pytest.raises(BackendError, match=r"is off by (nan|inf)"):
        Probe(MAP, 0.99).check(got, "x")


@pytest.mark.parametrize("shape", [(20, 16), (1, 16, 20), (1, 20), (1, 1)])
def test_a_map_of_another_shape_fails_the_probe(shape):
    with pytest.raises(BackendError, match="expected \\(16, 20\\)"):
        Probe(np.ones((16, 20), np.float32), 0.5).check(np.ones(shape, np.float32), "x")


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (50, 70), (256, 16), (192, 192)])
def test_a_probe_image_is_an_input_with_something_in_it(size):
    image = probe_image(*size)
    assert image.shape == (1, 3, *size)
    assert image.dtype == np.float32
    assert -1.0 <= image.min() < -0.5
    assert 0.5 < image.max() <= 1.0
    assert np.array_equal(image, probe_image(*size))
    assert image.reshape(3, -1).std(axis=1).min() > 0.1
    assert not np.array_equal(image[0, 0], image[0, 1])


def test_a_probe_image_never_changes():
    # were it to, every export made before would be refused
    expected = [0.161998, -0.002971, 0.003482, 0.142799]
    assert probe_image(50, 70)[0, :, ::30, ::40].ravel()[:4].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_quantization_has_a_tolerance_of_its_own():
    assert tolerance("float16", None) == TOLERANCE["float16"]
    assert tolerance("float32", "int8") == QUANTIZED_TOLERANCE["int8"]
    assert tolerance("bfloat16", "float8") == max(TOLERANCE["bfloat16"], QUANTIZED_TOLERANCE["float8"])


def test_a_size_that_an_export_does_not_take_is_refused():
    filled().require_size((16, 20), "image")
    dataclasses.replace(filled(), size=None).require_size((99, 99), "image")
    with pytest.raises(InputError, match=r"^image: 20x16 pixels .*takes 16x20 only"):
        filled().require_size((20, 16), "image")
