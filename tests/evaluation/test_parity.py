import hashlib
import json
import math
import shutil

import numpy as np
import pytest

from sprfast.backends.eager import EagerBackend
from sprfast.config import NetworkConfig, Preprocessing
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.evaluation import parity
from sprfast.formats.model import Model
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import manual
from support.scoring_mode_cases import with_mode


@pytest.fixture
def folder(golden_folder, golden_document, tmp_path):
    """A golden folder with the smallest case only, to be damaged."""
    shutil.copy(golden_folder / "tiny_32.npz", tmp_path)
    write_document(tmp_path, {**golden_document, "cases": {"tiny_32": dict(golden_document["cases"]["tiny_32"])}})
    return tmp_path


def write_document(folder, document):
    (folder / "golden.json").write_text(json.dumps(document))


def read_document(folder):
    return json.loads((folder / "golden.json").read_text())


def replace_arrays(folder, **arrays):
    """Other arrays in the case, with a hash to match."""
    with np.load(folder / "tiny_32.npz") as stored:
        content = {key: stored[key] for key in stored.files} | arrays
    np.savez(folder / "tiny_32.npz", **{key: array for key, array in content.items() if array is not None})
    sign(folder)


def sign(folder):
    document = read_document(folder)
    document["cases"]["tiny_32"]["sha256"] = hashlib.sha256((folder / "tiny_32.npz").read_bytes()).hexdigest()
    write_document(folder, document)


def failed(report):
    json.dumps(report.to_json(), allow_nan=False)
    assert report.to_json()["passed"] is report.passed is False
    return [row.quantity for row in report.rows if not row.passed]


def test_definition_and_eager_backend_reproduce_the_published_outputs(golden_folder):
    report = parity.check_golden(golden_folder)
    assert report.passed, [row for row in report.rows if not row.passed]
    assert {row.case for row in report.rows} == {"tiny_32", "wide_48x80", "odd_50x70"}
    assert len(report.rows) == 5 + 3 * 3  # scores at 2 + 2 + 1 times, and three maps a case
    assert all(row.limit is not None and row.value is not None for row in report.rows)
    assert report.images == 5
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["passed"] is True


@pytest.mark.usefixtures("bfloat16_on_any_processor")
def test_backend_cpu_in_bfloat16_is_near_the_published_outputs(golden_folder):
    report = parity.check_golden(golden_folder, "cpu", "cpu", "bfloat16")
    assert (report.precision, report.passed) == ("bfloat16", True)
    assert {row.case for row in report.rows} == {"tiny_32", "wide_48x80", "odd_50x70"}
    assert all(1e-5 < row.value < 5e-3 for row in report.rows)


def test_weights_follow_the_rule(golden_document):
    weights = parity.golden_weights(golden_document)
    assert Model(NetworkConfig(), ScoringMode(), Preprocessing(), weights).sha256 == golden_document["weights_sha256"]


def test_weights_of_another_seed_are_refused(golden_document):
    with pytest.raises(InputError, match="weights_sha256"):
        parity.golden_weights({**golden_document, "seed": 2024})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": "2023"}, "seed is str"),
        ({"seed": -1}, "seed -1"),
        ({"state_dict": {"inc.double_conv.0.bias": [10**12]}}, "state_dict"),
        ({"state_dict": []}, "state_dict is list"),
    ],
)
def test_weights_of_a_wrong_document_are_refused_before_they_are_built(golden_document, change, match):
    with pytest.raises(InputError, match=match):
        parity.golden_weights({**golden_document, **change})


def test_error_map_beyond_tolerance_fails_and_names_its_row(folder):
    with np.load(folder / "tiny_32.npz") as stored:
        error_map = stored["error_map"]
    replace_arrays(folder, error_map=error_map * np.float32(1.0001))
    report = parity.check_golden(folder)
    assert failed(report) == ["error_map, relative RMS error"]


def test_score_heat_map_and_image_score_beyond_tolerance_fail(folder):
    with np.load(folder / "tiny_32.npz") as stored:
        score, heatmap, image_score = stored["score_t1"], stored["heatmap"], stored["image_score"]
    heatmap[1, 0, 100, 100] += 1e-5
    image_score[2] -= 1e-5
    replace_arrays(folder, score_t1=score * np.float32(1.0001), heatmap=heatmap, image_score=image_score)
    score = "score at t = 0.5 (from error maps), relative RMS error"
    expected = [score, "anomaly_map, largest difference", "pred_score, largest difference"]
    assert failed(parity.check_golden(folder)) == expected


def test_nan_from_a_backend_fails_and_is_null_in_json(folder, monkeypatch):
    original = EagerBackend._error_map

    def one_nan(self, x, noise):
        errors = original(self, x, noise)
        errors[0, 0, 0, 0] = math.nan
        return errors

    monkeypatch.setattr(EagerBackend, "_error_map", one_nan)
    report = parity.check_golden(folder)
    assert len(failed(report)) == 5
    document = report.to_json()["rows"][-1]
    assert document["value"] is None
    assert document["reason"] == "the value is nan"


def test_a_report_without_rows_has_not_passed():
    assert not parity.Report("eager", "float32", "cpu", 0, ()).passed


def test_a_limit_without_a_value_has_not_passed():
    assert not parity.Row("images", "error", None, 1.0, "not computed").passed


def test_damaged_golden_file_is_an_input_error(folder):
    content = bytearray((folder / "tiny_32.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "tiny_32.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"tiny_32\.npz.*SHA-256"):
        parity.check_golden(folder)


def test_missing_golden_file_is_an_input_error(folder):
    (folder / "tiny_32.npz").unlink()
    with pytest.raises(InputError, match=r"tiny_32\.npz: is listed"):
        parity.check_golden(folder)


def test_case_outside_the_folder_is_an_input_error(folder):
    document = read_document(folder)
    document["cases"] = {"../tiny_32": document["cases"]["tiny_32"]}
    write_document(folder, document)
    with pytest.raises(InputError, match="leads out"):
        parity.check_golden(folder)


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return (open, (str(self.proof), "w"))


def test_pickle_in_a_golden_file_is_refused_and_never_run(folder):
    replace_arrays(folder, x=np.array([Payload(folder / "proof")], dtype=object))
    with pytest.raises(InputError, match="allow_pickle"):
        parity.check_golden(folder)
    assert not (folder / "proof").exists()


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"z": None}, "with the arrays"),
        ({"z": np.zeros((3, 3, 3, 32, 32), np.float32)}, "z is float32"),
        ({"heatmap": np.zeros((3, 1, 256, 256))}, "heatmap is float64"),
        ({"x": np.zeros((2, 3, 32, 32), np.float32)}, "x is float32"),
    ],
)
def test_golden_arrays_of_another_form_are_an_input_error(folder, arrays, match):
    replace_arrays(folder, **arrays)
    with pytest.raises(InputError, match=match):
        parity.check_golden(folder)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip file", b"\x93NUMPY\x01\x00", b"<html>"])
def test_golden_file_of_another_format_is_an_input_error(folder, content):
    (folder / "tiny_32.npz").write_bytes(content)
    sign(folder)
    with pytest.raises(InputError, match=r"is not an \.npz file"):
        parity.check_golden(folder)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "expected an object"),
        ("{}", "cases is missing"),
        ('{"cases": {}}', "cases is empty"),
        ('{"cases": {"a": 1}}', r"cases\.a is int"),
        ('{"cases": {"a": {"batch": 0}}}', r"cases\.a\.batch is 0"),
        ('{"cases": {"a": {"batch": 1, "height": 32, "width": true}}}', r"cases\.a\.width is bool"),
        (
            '{"cases": {"a": {"batch": 1, "height": 32, "width": 32, "iterations": 1, "sha256": "", "t": [2]}}}',
            "times in",
        ),
        (
            '{"cases": {"a": {"batch": 1, "height": 32, "width": 32, "iterations": 1, "sha256": "", "t": [NaN]}}}',
            "times in",
        ),
    ],
)
def test_wrong_golden_json_is_an_input_error_that_names_the_field(tmp_path, content, match):
    (tmp_path / "golden.json").write_text(content)
    with pytest.raises(InputError, match=match):
        parity.check_golden(tmp_path)


def test_folder_without_golden_json_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"golden\.json: cannot be read"):
        parity.check_golden(tmp_path / "missing")


def rows_of(report):
    return {row.quantity.split(",")[0]: row for row in report.rows if "correlation" not in row.quantity}


def correlation(report):
    (row,) = [row for row in report.rows if "correlation" in row.quantity]
    return row


def test_eager_backend_gives_the_verdicts_of_the_definition(small_model, pictures):
    report = parity.check_images(small_model, pictures, "eager")
    assert report.passed
    assert report.images == 4
    assert 0 < rows_of(report)["error_map"].value <= 1e-5
    assert rows_of(report)["pred_score"].value <= 1e-5
    assert rows_of(report)["verdicts that flip"].value == 0
    assert correlation(report).value == pytest.approx(1.0)
    json.dumps(report.to_json(), allow_nan=False)


def scaled(monkeypatch, factor):
    original = EagerBackend._error_map
    monkeypatch.setattr(EagerBackend, "_error_map", lambda self, x, noise: original(self, x, noise) * factor)


def test_backend_that_is_off_fails(small_model, pictures, monkeypatch):
    scaled(monkeypatch, 1.001)
    report = parity.check_images(with_mode(small_model, threshold=manual(1.0)), pictures, "eager")
    assert failed(report) == ["error_map, largest relative RMS error", "pred_score, largest relative error"]
    assert rows_of(report)["error_map"].value == pytest.approx(1e-3, rel=0.02)
    assert rows_of(report)["pred_score"].value == pytest.approx(1e-3, rel=0.02)
    assert correlation(report).value == pytest.approx(1.0)


def test_one_bad_image_among_good_ones_fails(small_model, pictures, monkeypatch):
    original, calls = EagerBackend._error_map, []

    def wrong_once(self, x, noise):
        calls.append(None)
        return original(self, x, noise) * (math.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(EagerBackend, "_error_map", wrong_once)
    report = parity.check_images(small_model, pictures, "eager")
    assert len(failed(report)) == 3  # map, score, and a verdict that became ERROR
    assert rows_of(report)["verdicts that flip"].value == 1
    assert correlation(report).value is None
    assert correlation(report).reason == "a score is NaN or infinite"


def test_a_flipped_verdict_fails_though_the_errors_are_within_tolerance(small_model, pictures, monkeypatch):
    scores = [result.pred_score for result in Engine(small_model, "eager").predict(pictures)]
    model = with_mode(small_model, threshold=manual(scores[2] * (1 + 2e-5)))
    assert parity.check_images(model, pictures, "eager").passed
    scaled(monkeypatch, 1.00004)
    report = parity.check_images(model, pictures, "eager")
    assert failed(report) == ["verdicts that flip"]
    assert rows_of(report)["verdicts that flip"].value == 1


def test_without_a_threshold_flips_are_not_counted_and_the_reason_is_given(small_model, pictures):
    report = parity.check_images(with_mode(small_model, threshold=None), pictures, "eager")
    assert report.passed
    assert rows_of(report)["verdicts that flip"].value is None
    assert "no threshold" in rows_of(report)["verdicts that flip"].reason


def test_rank_correlation_says_why_it_is_undefined(small_model, pictures):
    assert "at least 3 images" in correlation(parity.check_images(small_model, pictures[:2], "eager")).reason
    assert "equal" in correlation(parity.check_images(small_model, [pictures[0]] * 3, "eager")).reason


def test_no_images_and_unreadable_images_are_input_errors(small_model, pictures, tmp_path):
    with pytest.raises(InputError, match="no images"):
        parity.check_images(small_model, [])
    with pytest.raises(InputError, match=r"missing\.png"):
        parity.check_images(small_model, [*pictures, tmp_path / "missing.png"])
