"""Exports of one model side by side."""

import dataclasses
import io
import json

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from sprfast.bench.core import exports
from sprfast.config import Level, Schedule
from sprfast.data import datasets as data
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.engine.engine import Engine
from sprfast.engine.runner import Runner
from sprfast.evaluation import evaluate as evaluation
from sprfast.evaluation.metrics import Metric
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.kernels.cpu import library
from sprfast.method import threshold
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import Verdict
from support.scoring_mode_cases import with_mode

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))

REQUESTS = {"32": Request("onnx"), "16": Request("onnx", precision="float16"), "plan": Request("plan")}
QUICK = ("--seconds", "0.01")


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory):
    """The model, and a file for each request."""
    folder = tmp_path_factory.mktemp("exports")
    model_file.save(folder / "model.safetensors", small_model)
    for name, request in REQUESTS.items():
        export.export(small_model, folder / name, request)
    return folder


@pytest.fixture(scope="module")
def category(tmp_path_factory):
    """The folder of two good and two defective test images whose masks are small squares."""
    root, random = tmp_path_factory.mktemp("data") / "nut", np.random.default_rng(0)
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:16, 8:16] = 255
    for kind, contrast in (("train/good", 0.3), ("test/good", 0.3), ("test/dent", 0.9), ("ground_truth/dent", None)):
        (root / kind).mkdir(parents=True)
        for number in range(2):
            name = f"{number}.png" if contrast else f"{number}_mask.png"
            pixels = (random.random((32, 32, 3)) * 255 * contrast).astype(np.uint8) if contrast else mask
            PIL.Image.fromarray(pixels).save(root / kind / name)
    return root


@pytest.fixture
def bench(folder, capsys):
    """Run the command on the model and on files in the folder: (exit code, stdout, stderr)."""

    def call(*arguments, of=REQUESTS):
        code = exports.main(
            [*map(str, (folder / "model.safetensors", *(folder / name for name in of), *QUICK, *arguments))]
        )
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_a_row_for_the_model_and_for_each_export(bench, folder, pictures):
    code, out, err = bench("--images", pictures[0].parent, "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    rows = report["rows"]
    assert [row["name"] for row in rows] == [exports.OWN, *(str(folder / name) for name in REQUESTS)]
    assert [row["backend"] for row in rows] == ["cpu", "onnxruntime", "onnxruntime", "cpu"]
    assert [row["precision"] for row in rows] == ["float32", "float32", "float16", "float32"]
    assert {row["device"] for row in rows} == {"cpu"}
    assert report["schema_version"] == 1
    assert report["calls"] >= exports.ROUNDS
    assert report["compared"] == len(pictures)
    assert rows[0]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    for row in rows:
        assert 0 < row["ms"]["p50"] <= row["ms"]["p90"]
        assert 0 < row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
        assert row["image_AUROC"] is row["image_AUROC_change"] is row["verdict_changes"] is None


def test_sixteen_bits_cost_what_the_definition_says(bench, pictures):
    rows = json.loads(bench("--images", pictures[0].parent, "--json")[1])["rows"]
    errors = [row["error_map_relative_rms"] for row in rows]
    assert max(errors[0], errors[1], errors[3]) < 1e-5 < errors[2] < 3e-3
    scores = [row["score_relative_error"] for row in rows]
    assert max(scores[0], scores[1], scores[3]) < 1e-5 < scores[2] < 3e-3
    assert [row["flips"] for row in rows] == [0, 0, 0, 0]


def test_a_verdict_that_flips_is_counted_and_fails(small_model, pictures, tmp_path, folder, capsys):
    """A threshold between the scores that an image has in 32 and in 16 bits."""
    exact = Engine(small_model, "eager", "cpu").predict(pictures[0]).pred_score
    rounded = export_file.read(folder / "16")
    between = threshold.manual((exact + Runner(rounded).predict(pictures[0]).pred_score) / 2)
    model_file.save(tmp_path / "model", with_mode(small_model, threshold=between))
    metadata = with_mode(rounded.metadata, threshold=between)
    export_file.write(tmp_path / "16", dataclasses.replace(rounded, metadata=metadata))
    given = [*map(str, (tmp_path / "model", tmp_path / "16", "--images", pictures[0].parent, *QUICK))]
    assert exports.main([*given, "--json"]) == 1
    printed = capsys.readouterr()
    assert [row["flips"] for row in json.loads(printed.out)["rows"]] == [0, 1]
    assert f"{tmp_path / '16'}: does not score like the definition" in printed.err


def test_with_labelled_images_every_row_has_its_auroc(bench, category, small_model):
    code, out, _ = bench("--data", category, "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["scored"], report["compared"]) == (4, 4)
    expected = evaluation.evaluate(Engine(small_model), data.load_category(category, None)).metrics
    for row in report["rows"]:
        for name in exports.METRICS:
            assert row[name] == pytest.approx(expected[name].value, abs=1e-2)
        assert row["pixel_AUROC_change"] == pytest.approx(
            row["pixel_AUROC"] - report["rows"][0]["pixel_AUROC"], abs=1e-12
        )
        assert abs(row["pixel_AUROC_change"]) < 1e-2
        assert row["verdict_changes"] == 0


def test_changes_are_from_the_first_row(small_model, category):
    first = evaluation.evaluate(Engine(small_model), data.load_category(category, None))
    other = dataclasses.replace(
        first.results[0], verdict=Verdict.PASS if first.results[0].pred_label else Verdict.REJECT
    )
    metrics = {
        "image_AUROC": Metric(first.metrics["image_AUROC"].value - 0.25),
        "pixel_AUROC": Metric(None, "no masks"),
    }
    found = exports._accuracy(dataclasses.replace(first, metrics=metrics, results=(other, *first.results[1:])), first)
    assert (found["image_AUROC_change"], found["pixel_AUROC_change"], found["verdict_changes"]) == (-0.25, None, 1)
    assert exports._accuracy(first, first)["verdict_changes"] == 0
    # no threshold
    assert exports._accuracy(dataclasses.replace(first, rejected_good=None), first)["verdict_changes"] is None
    assert set(exports._accuracy(None, None).values()) == {None}


def test_without_images_only_time_is_known(bench):
    code, out, _ = bench("--json", of=["plan"])
    report = json.loads(out)
    assert (code, report["compared"], report["scored"]) == (0, 0, 0)
    assert {
        row[key] for row in report["rows"] for key in ("error_map_relative_rms", "score_relative_error", "flips")
    } == {None}
    assert "errors and flips are not known: give --images" in bench(of=["plan"])[1]


def test_the_table_has_every_row(bench, category, folder):
    code, out, _ = bench("--data", category)
    assert code == 0
    for name in (exports.OWN, *(str(folder / name) for name in REQUESTS)):
        assert name[:8] in out
    assert "on 4 labelled images" in out


def test_the_table_is_whole_in_a_terminal(folder, small_model, pictures, category, monkeypatch):
    monkeypatch.chdir(folder)
    console = Console(file=io.StringIO(), width=80)
    opened = {name: Runner(export_file.read(name)) for name in REQUESTS}
    report = exports.measure(small_model, opened, pictures, data.load_category(category, None), 0.01)
    console.print(exports.table(report))
    text = console.file.getvalue()
    assert "…" not in text
    for name in (exports.OWN, *REQUESTS):
        assert sum(line.startswith(f" {name} ") for line in text.splitlines()) == 3  # time, errors, accuracy


def test_images_are_spread_over_all(small_model, pictures, monkeypatch):
    monkeypatch.setattr(exports, "IMAGES", 3)
    seen = []
    monkeypatch.setattr(exports.parity, "image_rows", lambda model, paths, *rest: seen.extend(paths) or ())
    exports.measure(small_model, {}, pictures * 2, None, 0.01)
    assert seen == (pictures * 2)[::3]


def test_a_size_that_an_export_does_not_take_is_refused(bench, small_model, folder, tmp_path):
    PIL.Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(tmp_path / "wide.png")
    code, out, err = bench("--images", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{folder / '32'}: " in err
    assert "wide.png" in err


def test_the_backend_is_for_onnx_files_alone(bench):
    report = json.loads(bench("--backend", "onnxruntime", "--json", of=["plan", "32"])[1])
    assert [row["backend"] for row in report["rows"][1:]] == ["cpu", "onnxruntime"]


def test_an_export_of_another_size_is_timed_at_that(small_model, folder, tmp_path, capsys):
    export.export(small_model, tmp_path / "wide", Request("onnx", size=(32, 48)))
    given = [str(folder / "model.safetensors"), str(tmp_path / "wide"), str(folder / "plan"), *QUICK, "--json"]
    assert exports.main(given) == 0
    found = json.loads(capsys.readouterr().out)["input"]
    assert (found["height"], found["width"]) == (32, 48)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda model: {"weights": {name: 1.01 * value for name, value in model.weights.items()}}, "weights"),
        (lambda model: {"scoring_mode": ScoringMode(Schedule((Level(1e-3, 3),)))}, "sigma levels"),
        (lambda model: {"noise_seed": model.noise_seed + 1}, "noise"),
    ],
)
def test_an_export_of_another_model_is_refused(change, what, small_model, folder, tmp_path, capsys):
    model_file.save(tmp_path / "other", dataclasses.replace(small_model, **change(small_model)))
    assert exports.main([str(tmp_path / "other"), str(folder / "plan"), *QUICK]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert f"{folder / 'plan'}: was made from another model, its {what} differ" in printed.err


def test_bad_input_is_one_line(bench, category, tmp_path):
    for arguments, names in (
        (("--seconds", "0"), "--seconds: 0"),
        (("--seconds", "nan"), "--seconds: nan"),
        (("--data", category.parent), "nut"),
        (("--images", tmp_path), "holds no image"),
    ):
        code, out, err = bench(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert names in err
    code, _, err = bench(of=["model.safetensors"])
    assert code == 2
    assert "is a model file, not an export" in err
