"""`sprfast bench overhead`: what a line costs beside its predictor, and that it gives the same
scores.
"""

import copy
import dataclasses
import json

import pytest

import sprfast
from sprfast.bench.line import overhead
from sprfast.deploy import export
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.line import Line
from support.scoring_mode_cases import with_mode

BRIEF = 0.01  # seconds of a measurement: the fewest rounds


@pytest.fixture(scope="module", autouse=True)
def few_images():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(overhead, "IMAGES", 4)
        yield


@pytest.fixture(scope="module")
def engine(small_model):
    return Engine(small_model, "eager", "cpu")


@pytest.fixture(scope="module")
def report(engine, tmp_path_factory):
    pictures = overhead.Pictures.random(engine, tmp_path_factory.mktemp("made-up"))
    return overhead.measure(engine, pictures, BRIEF)


def test_every_figure_is_there(report):
    for form in ("arrays", "files"):
        offline, single = report[form]["offline"], report[form]["single_stream"]
        for name in ("engine", "line"):
            seconds = offline[name]["seconds"]
            assert len(seconds) == 3
            assert offline[name]["images_per_s"] == pytest.approx(overhead.IMAGES / sorted(seconds)[1])
            assert 0 < single[name]["p50_ms"] <= single[name]["p90_ms"]
        ratios = [
            bare / line for bare, line in zip(offline["engine"]["seconds"], offline["line"]["seconds"], strict=True)
        ]
        assert offline["ratio"] == pytest.approx({"median": sorted(ratios)[1], "min": min(ratios), "max": max(ratios)})
        for key in ("p50", "p90"):
            assert single["added_ms"][key] == pytest.approx(single["line"][f"{key}_ms"] - single["engine"][f"{key}_ms"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_every_score_of_both_is_compared(report):
    queries = sum(
        report[form]["single_stream"][name]["queries"] for form in ("arrays", "files") for name in ("engine", "line")
    )
    untimed = queries // 4  # a turn of four begins with one
    assert report["scores"]["compared"] == 2 * 2 * 3 * (overhead.IMAGES + 1) + queries + untimed
    assert report["scores"] == report["scores"] | {
        "different": 0,
        "tolerance": 0.0,
        "largest_relative": 0.0,
        "passed": True,
    }


def test_limits_are_judged_on_the_medians(report):
    changed = copy.deepcopy(report)
    assert [limit["limit"] for limit in report["limits"]] == [5.0, 1.0] * 2
    for form, (loss, delay) in {"arrays": (0.049, 0.9), "files": (0.051, 1.1)}.items():
        changed[form]["offline"]["ratio"]["median"] = 1 - loss
        changed[form]["single_stream"]["added_ms"] = {"p50": delay, "p90": 2.0}
    changed["limits"] = [limit for form in ("arrays", "files") for limit in overhead._limits(form, changed[form])]
    assert [limit["passed"] for limit in changed["limits"]] == [True, True, False, False]
    assert [limit["value"] for limit in changed["limits"]] == pytest.approx([4.9, 0.9, 5.1, 1.1])
    assert not overhead.passed(changed)
    kept = changed | {"limits": changed["limits"][:2]}
    assert overhead.passed(kept)
    assert not overhead.passed(kept | {"scores": {"passed": False}})


@pytest.mark.parametrize(("factor", "largest"), [(1 + 1e-6, pytest.approx(1e-6, rel=1e-2)), (float("nan"), None)])
def test_a_line_with_other_scores_is_noticed(engine, tmp_path, factor, largest):
    class Other(Engine):
        def score(self, prepared):
            return [
                dataclasses.replace(result, pred_score=factor * result.pred_score) for result in super().score(prepared)
            ]

    pictures = overhead.Pictures.random(engine, tmp_path)
    found = overhead.measure(
        engine, pictures, BRIEF, line_of=lambda _, timeout: Line(Other(engine.model, "eager", "cpu"), timeout=timeout)
    )
    scores = found["scores"]
    assert scores["largest_relative"] == largest
    assert not overhead.passed(found)
    assert scores["different"] == scores["compared"] // 2


def test_pictures_of_files_are_those_files_and_repeat(engine, pictures):
    taken = overhead.Pictures.of_files(pictures[:3], engine.preprocessing)
    assert taken.paths == (*pictures[:3], pictures[0])
    scores = [result.pred_score for result in engine.predict(list(taken.arrays), "rgb")]
    assert scores == [result.pred_score for result in engine.predict(list(taken.paths))]
    assert len(set(scores)) == 3


def test_random_pictures_have_the_size_of_an_export(small_model, tmp_path):
    path = tmp_path / "model.onnx"
    export.export(small_model, path, export.Request("onnx", size=(32, 48)))
    pictures = overhead.Pictures.random(sprfast.load(path), tmp_path)
    assert {array.shape for array in pictures.arrays} == {(32, 48, 3)}


def test_the_command(run, model_path, pictures, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("bench", "overhead", model_path, "--seconds", BRIEF, "--images", pictures[0].parent)
    assert code == (1 if "FAIL" in out else 0)
    assert "scores: largest difference 0.0e+00" in " ".join(out.split())
    assert "4 files" in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    monkeypatch.setattr(overhead, "LOSS_LIMIT", -1e9)
    code, out, _ = run("bench", "overhead", model_path, "--seconds", BRIEF, "--json")
    assert code == 1
    assert [limit["passed"] for limit in json.loads(out)["limits"]][::2] == [False, False]


def test_bad_input_is_one_line(run, model_path, engine, small_model, tmp_path):
    code, out, err = run("bench", "overhead", model_path, "--seconds", "0")
    assert (code, out) == (2, "")
    assert err.startswith("sprfast: seconds: 0.0 is not allowed")
    uncalibrated = Engine(with_mode(small_model, threshold=None), "eager", "cpu")
    with pytest.raises(InputError, match="no threshold"):
        overhead.measure(uncalibrated, overhead.Pictures.random(uncalibrated, tmp_path), BRIEF)
