"""Exports of a model as candidates of its bench."""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from sprfast.bench.core import accuracy, cases, exports, peers, report, work
from sprfast.bench.page import render as page
from sprfast.config import Level, Schedule
from sprfast.data import datasets
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.engine.engine import Engine
from sprfast.engine.runner import Runner
from sprfast.errors import InputError, ModelFileError
from sprfast.evaluation.evaluate import evaluate
from sprfast.evaluation.metrics import Metric
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.kernels.cpu import library
from sprfast.method import threshold
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.threshold import Verdict
from support.bench_reports import printed
from support.scoring_mode_cases import with_mode

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))

CPU = torch.device("cpu")
REQUESTS = {"32": Request("onnx"), "16": Request("onnx", precision="float16"), "plan": Request("plan")}


def _rounded(model, noise, device):
    maps = peers.plain(model, noise, device)
    return lambda x: tuple(each * 1.002 for each in maps(x))


ROUNDED = peers.Candidate("rounded", "another library in 16 bits", _rounded, "bfloat16")


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


@pytest.fixture(scope="module")
def document(folder, category, small_model):
    """A bench of the definition and of every export, with labelled images."""
    labelled = datasets.load_category(category, None)
    paths = [sample.path for sample in labelled.test]
    options = cases.BenchOptions(batch=2, seconds=0.01, device="cpu", paths=paths, labelled=labelled)
    with exports.opened(small_model, [folder / name for name in REQUESTS], CPU) as runners:
        return cases.run(small_model, options, candidates=[peers.CANDIDATES[1], ROUNDED], runners=runners)


def rows_of(model, paths, images=(), labelled=None):
    """What `exports.accuracy` says of the exports at `paths`."""
    rows = []
    with exports.opened(model, paths, CPU) as runners:
        accuracy.measure(model, runners, images, labelled, lambda what: None, rows)
    return rows


def test_every_export_is_a_candidate_beside_the_others(document):
    assert list(document["candidates"]) == ["channels_last", *REQUESTS, "rounded"]
    assert document["complete"]
    for name, stored, backend in (
        ("32", "float32", "onnxruntime"),
        ("16", "float16", "onnxruntime"),
        ("plan", "float32", "cpu"),
    ):
        entry = document["candidates"][name]
        assert entry["description"] == f"export by sprfast, stored as {stored}, by {backend}"
        assert (entry["status"], entry["ours"], entry["precision"]) == ("measured", False, "float32")
        assert entry["offline"]["images_per_s"] > 0
    json.dumps(document, allow_nan=False)


def test_sixteen_bits_cost_what_the_definition_says(document):
    entries = document["candidates"]
    errors = {name: report.largest_error(entries[name]["parity"]) for name in REQUESTS}
    assert max(errors["32"], errors["plan"]) < 1e-5 < errors["16"] < entries["16"]["tolerance"] == 3e-3
    scores = {row["name"]: row["score_relative_error"] for row in document["accuracy"]}
    assert scores.pop(accuracy.OWN) is None
    assert max(scores["32"], scores["plan"]) < 1e-5 < scores["16"] < 3e-3
    assert scores["rounded"] == pytest.approx(2e-3, rel=1e-2)
    assert [row["flips"] for row in document["accuracy"]] == [None, 0, 0, 0, 0]


def test_with_labelled_images_every_row_has_its_auroc(document, category, small_model):
    expected = evaluate(Engine(small_model), datasets.load_category(category, None)).metrics
    assert [row["name"] for row in document["accuracy"]] == [accuracy.OWN, "rounded", *REQUESTS]
    for row in document["accuracy"]:
        for name in accuracy.METRICS:
            assert row[name] == pytest.approx(expected[name].value, abs=1e-2)
        assert row["pixel_AUROC_change"] == pytest.approx(
            row["pixel_AUROC"] - document["accuracy"][0]["pixel_AUROC"], abs=1e-12
        )
        assert row["verdict_changes"] == 0


def test_terminal_and_page_have_every_row(document):
    text = printed(report.table(document))
    assert "…" not in text
    for name in REQUESTS:
        assert sum(line.startswith(f" {name} ") for line in text.splitlines()) >= 4  # three tables and the accuracy
    html = page.render(document)
    assert "Accuracy in less than float32 and of exports" in html
    assert accuracy.OWN in html


def test_a_verdict_that_flips_is_counted_and_fails(small_model, pictures, tmp_path, folder, document):
    """A threshold between the scores that an image has in 32 and in 16 bits."""
    exact = Engine(small_model, "eager", "cpu").predict(pictures[0]).pred_score
    rounded = export_file.read(folder / "16")
    between = threshold.manual((exact + Runner(rounded).predict(pictures[0]).pred_score) / 2)
    metadata = with_mode(rounded.metadata, threshold=between)
    export_file.write(tmp_path / "16", dataclasses.replace(rounded, metadata=metadata))
    rows = rows_of(with_mode(small_model, threshold=between), [tmp_path / "16"], pictures)
    assert [(row["flips"], row["passed"]) for row in rows] == [(None, True), (1, False)]
    said = "16: does not score like the definition, see `sprfast parity --export`"
    assert said not in report.failures(document)
    assert said in report.failures(document | {"accuracy": rows})


def test_a_candidate_that_cannot_score_an_image_says_why_and_ends_nothing(small_model, category):
    """Images of the bench have one size; a test image has another."""
    done = work.Work(small_model, work.random_images(1, 48), CPU)
    rows = []
    predictors = {"rounded": done.predictor(done.build(ROUNDED))}
    accuracy.measure(small_model, predictors, (), datasets.load_category(category, None), lambda what: None, rows)
    assert rows[0]["image_AUROC"] is not None
    assert rows[1]["image_AUROC"] is None
    assert "images must have one size at the network's input, but there are 32x32 and 48x48" in rows[1]["reason"]


def test_changes_are_from_the_first_row(small_model, category):
    first = evaluate(Engine(small_model), datasets.load_category(category, None))
    other = dataclasses.replace(
        first.results[0], verdict=Verdict.PASS if first.results[0].pred_label else Verdict.REJECT
    )
    metrics = {"image_AUROC": Metric(first.metrics["image_AUROC"].value - 0.25), "pixel_AUROC": Metric(None, "none")}
    found = accuracy._changes(dataclasses.replace(first, metrics=metrics, results=(other, *first.results[1:])), first)
    assert (found["image_AUROC_change"], found["pixel_AUROC_change"], found["verdict_changes"]) == (-0.25, None, 1)
    # no threshold
    assert accuracy._changes(dataclasses.replace(first, rejected_good=None), first)["verdict_changes"] is None
    assert set(accuracy._changes(None, None).values()) == {None}


def test_without_images_nothing_is_known(small_model, folder):
    rows = rows_of(small_model, [folder / "plan"])
    assert {row[key] for row in rows for key in ("flips", "image_AUROC", "verdict_changes")} == {None}
    assert accuracy.cells(rows[0]) == [None] * len(accuracy.HEADINGS)


def test_images_are_spread_over_all(small_model, folder, pictures, monkeypatch):
    monkeypatch.setattr(accuracy, "IMAGES", 3)
    seen, check = [], accuracy.export.check
    monkeypatch.setattr(
        accuracy.export, "check", lambda model, runner, paths: seen.extend(paths) or check(model, runner, paths[:1])
    )
    rows_of(small_model, [folder / "plan"], pictures * 2)
    assert seen == (pictures * 2)[::3]


def test_a_size_that_an_export_does_not_take_is_refused(small_model, folder):
    options = cases.BenchOptions(batch=1, seconds=0.01, size=48, device="cpu")
    with (
        exports.opened(small_model, [folder / "32"], CPU) as runners,
        pytest.raises(InputError, match="--export 32: images of the bench: 48x48 pixels"),
    ):
        cases.run(small_model, options, candidates=(), runners=runners)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda model: {"weights": {name: 1.01 * value for name, value in model.weights.items()}}, "weights"),
        (lambda model: {"scoring_mode": ScoringMode(Schedule((Level(1e-3, 3),)))}, "sigma levels"),
        (lambda model: {"noise_seed": model.noise_seed + 1}, "noise"),
    ],
)
def test_an_export_of_another_model_is_refused(change, what, small_model, folder):
    other = dataclasses.replace(small_model, **change(small_model))
    with (
        pytest.raises(InputError, match=f"plan: was made from another model, its {what} differ"),
        exports.opened(other, [folder / "plan"], CPU),
    ):
        pass


def test_names_are_each_its_own(small_model, folder, tmp_path):
    shutil.copy(folder / "plan", tmp_path / "plan")
    with (
        pytest.raises(InputError, match="another export has this file name"),
        exports.opened(small_model, [folder / "plan", tmp_path / "plan"], CPU),
    ):
        pass
    shutil.copy(folder / "plan", tmp_path / "eager")
    with (
        exports.opened(small_model, [tmp_path / "eager"], CPU) as runners,
        pytest.raises(InputError, match="eager is the name of another candidate"),
    ):
        cases.run(small_model, cases.BenchOptions(device="cpu"), runners=runners)


def test_a_model_file_is_no_export(small_model, folder):
    with pytest.raises(ModelFileError, match="is a model file, not an export"), contextlib.ExitStack() as stack:
        stack.enter_context(exports.opened(small_model, [folder / "model.safetensors"], CPU))


def test_the_command_takes_several(run, folder, pictures):
    code, out, _ = run(
        *("bench", folder / "model.safetensors", "--candidates", "channels_last", "--batch", "1", "--seconds", "0.01"),
        *("--export", folder / "32", "--export", folder / "plan", "--images", pictures[0].parent, "--device", "cpu"),
        "--json",
    )
    assert code == 0
    document = json.loads(out)
    assert list(document["candidates"]) == ["channels_last", "32", "plan"]
    assert [row["name"] for row in document["accuracy"]] == [accuracy.OWN, "32", "plan"]
