"""Exports: what is in them, that nothing wrong is written, and the commands around them."""

import dataclasses
import json

import numpy as np
import onnx
import PIL.Image
import pytest

import sprfast
from sprfast.config import Level, Schedule
from sprfast.deploy import export
from sprfast.deploy.export import Request
from sprfast.engine.engine import Engine
from sprfast.engine.runner import Runner
from sprfast.errors import BackendError, CheckFailedError, InputError
from sprfast.formats import export as export_file
from sprfast.formats import model as model_file
from sprfast.kernels.cpu import library
from sprfast.method.threshold import MapThreshold, Verdict, manual
from support.scoring_mode_cases import QUICK, field, with_mode, with_settings

ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


def test_a_graph_is_an_ordinary_onnx_model_with_the_score_in_it(small_model, pictures, tmp_path):
    path = tmp_path / "a.onnx"
    metadata = export.export(small_model, path, Request("onnx"))
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["error_map", "anomaly_map", "pred_score"]
    engine = Engine(small_model, "eager", "cpu")
    loaded = Runner(export_file.read(path))
    x = np.stack([loaded.prepare(picture).pixels for picture in pictures])
    scores = session.run(["pred_score"], {"image": x, "noise": loaded._noise(32, 32)})[0]
    np.testing.assert_allclose(scores, [result.pred_score for result in engine.predict(pictures)], rtol=1e-5)
    assert metadata.size == (32, 32)
    assert metadata.batch is None


def test_the_certificate_says_what_was_compared(small_model, pictures, tmp_path):
    metadata = export.export(small_model, tmp_path / "a", Request("onnx"), pictures)
    (certificate,) = export_file.read(tmp_path / "a").metadata.certificates
    assert certificate == metadata.certificates[0]
    assert certificate["images"] == len(pictures)
    assert certificate["by"] == f"onnxruntime {ort.__version__}"
    assert certificate["probe_relative_rms"] <= 1e-5
    values = {row["quantity"]: row["value"] for row in certificate["rows"]}
    assert values["error_map, largest relative RMS error"] <= 1e-5
    assert values["pred_score, largest relative error"] <= 1e-5
    assert values["verdicts that flip"] == 0


def test_of_many_images_some_of_all_are_compared(small_model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "IMAGES", 3)
    metadata = export.export(small_model, tmp_path / "a", Request("plan"), pictures * 2)
    assert metadata.certificates[0]["images"] == 3


def test_all_that_scoring_needs_goes_along(small_model, tmp_path):
    schedule = Schedule((Level(1e-3, 2), Level(0.1, 1, 0.5)))
    model = dataclasses.replace(with_mode(small_model, schedule=schedule), noise_seed=7)
    for target in ("onnx", "tensorrt", "plan"):
        export.export(model, tmp_path / target, Request(target))
        metadata = export_file.read(tmp_path / target).metadata
        for name in ("network", "scoring_mode", "preprocessing", "noise_seed"):
            assert getattr(metadata, name) == getattr(model, name)
        assert metadata.model_sha256 == model.sha256


@pytest.mark.parametrize("noise", ["signs", "none"])
@pytest.mark.parametrize("target", ["onnx", "tensorrt", "plan"])
def test_a_setting_with_a_field_scores_and_marks_as_the_engine_does(small_model, pictures, tmp_path, target, noise):
    schedule = dataclasses.replace(QUICK, noise=noise)
    free = with_mode(small_model, schedule=schedule, error_field=field(), threshold=None)
    results = Engine(free, "eager", "cpu").predict(pictures)
    scores = sorted(result.pred_score for result in results)
    between = float(np.median(results[0].anomaly_map)) * 1.0001
    model = with_mode(free, threshold=manual((scores[1] + scores[2]) / 2), map_threshold=MapThreshold(between, 20, 0.1))
    metadata = export.export(model, tmp_path / "a", Request(target), pictures)
    assert metadata.scoring_mode.map_threshold == model.scoring_mode.map_threshold
    assert {row["quantity"]: row["value"] for row in metadata.certificates[0]["rows"]}["verdicts that flip"] == 0
    loaded = Runner(export_file.read(tmp_path / "a"))
    assert loaded.scoring_mode.error_field.expected.tobytes() == field().expected.tobytes()
    expected, got = Engine(model, "eager", "cpu").predict(pictures), loaded.predict(pictures)
    assert [result.pred_score for result in got] == pytest.approx([result.pred_score for result in expected], rel=1e-5)
    assert [result.verdict for result in got] == [result.verdict for result in expected]
    assert {result.verdict for result in got} == {Verdict.PASS, Verdict.REJECT}
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.map_threshold, ours.passes, ours.threshold) == (between, 1, model.scoring_mode.threshold.value)
        assert ours.pred_score != pytest.approx(float(ours.anomaly_map.max()), rel=0.1)  # the field counts
        assert np.mean(ours.pred_mask != theirs.pred_mask) < 1e-3  # but for pixels within rounding of the threshold
    assert 0 < got[0].pred_mask.mean() < 1


@pytest.mark.parametrize("target", ["onnx", "tensorrt", "plan"])
def test_a_setting_of_tiles_scores_strips_as_the_engine_does(small_model, tmp_path, target):
    strips = [tmp_path / f"{width}.png" for width in (90, 50)]
    for path in strips:
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, int(path.stem), 3), np.uint8)).save(path)
    model = with_mode(small_model, schedule=QUICK, window=4, tile=32)
    metadata = export.export(model, tmp_path / "a", Request(target), strips)
    assert metadata.size == (None if target == "plan" else (32, 32))
    values = {row["quantity"]: row["value"] for row in metadata.certificates[0]["rows"]}
    assert values["error_map, largest relative RMS error"] <= 1e-5
    assert values["pred_score, largest relative error"] <= 1e-5
    expected, got = Engine(model, "eager", "cpu").predict(strips), Runner(export_file.read(tmp_path / "a"))
    assert [got.predict(path).pred_score for path in strips] == pytest.approx(
        [result.pred_score for result in expected], rel=1e-5
    )
    whole = Engine(with_mode(model, tile=None), "eager", "cpu").predict(strips)
    assert expected[0].pred_score != pytest.approx(whole[0].pred_score, rel=1e-3)


def test_a_setting_of_a_model_is_exported_by_its_name(small_model, tmp_path):
    model = with_settings(small_model)
    export.export(model.using("quick"), tmp_path / "a", Request("plan"))
    metadata = export_file.read(tmp_path / "a").metadata
    assert metadata.scoring_mode == model.scoring_modes["quick"]
    assert metadata.model_sha256 == small_model.sha256


def test_an_export_is_of_the_size_of_its_field_and_of_no_other(small_model, tmp_path):
    wide, square = tmp_path / "wide.png", tmp_path / "square.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), np.uint8)).save(wide)
    PIL.Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(square)
    model = with_mode(small_model, schedule=QUICK, error_field=field(32, 64))
    for target in ("onnx", "plan"):
        export.export(model, tmp_path / target, Request(target), [wide])
        loaded = Runner(export_file.read(tmp_path / target))
        assert loaded.input_size == (32, 64)
        results = loaded.predict([wide, square])
        assert results[0].pred_score == pytest.approx(Engine(model, "eager", "cpu").predict(wide).pred_score, rel=1e-5)
        assert results[1].verdict is Verdict.ERROR
        assert (
            "square.png: 32x32 pixels (height x width) at the network's input, the error field was fitted at 32x64"
            in results[1].reason
        )
    with pytest.raises(InputError, match=r"export: 48x48 pixels .* the error field was fitted at 32x64"):
        export.export(model, tmp_path / "b", Request("onnx", size=(48, 48)))
    with pytest.raises(InputError, match=r"square.png: 32x32 pixels .* the error field was fitted at 32x64"):
        export.export(model, tmp_path / "b", Request("plan"), [wide, square])
    assert not (tmp_path / "b").exists()


def test_equal_models_give_equal_bytes(small_model, tmp_path):
    for target in ("onnx", "plan"):
        for name in ("a", "b"):
            export.export(small_model, tmp_path / name, Request(target))
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_sixteen_bits_are_within_their_tolerance_and_smaller(small_model, pictures, tmp_path):
    full = export.export(small_model, tmp_path / "32", Request("onnx"), pictures)
    half = export.export(small_model, tmp_path / "16", Request("onnx", precision="float16"), pictures)
    assert (tmp_path / "16").stat().st_size < 0.55 * (tmp_path / "32").stat().st_size
    assert full.certificates[0]["probe_relative_rms"] < 1e-5 < half.certificates[0]["probe_relative_rms"] < 3e-3


def test_what_cannot_be_checked_here_says_so(small_model, tmp_path):
    metadata = export.export(small_model, tmp_path / "a", Request("tensorrt", precision="bfloat16"))
    assert "onnxruntime has no bfloat16 convolution" in metadata.certificates[0]["not_checked"]
    assert "probe_relative_rms" not in metadata.certificates[0]


@pytest.mark.usefixtures("bfloat16_on_any_processor")
def test_a_plan_in_bfloat16_scores_like_the_model_in_bfloat16(small_model, pictures, tmp_path):
    metadata = export.export(small_model, tmp_path / "plan", Request("plan", precision="bfloat16"), pictures)
    assert 1e-5 < metadata.certificates[0]["probe_relative_rms"] < 2e-2
    runner = sprfast.load(tmp_path / "plan")
    assert runner.precision == "bfloat16"
    scores = [result.pred_score for result in runner.predict(pictures)]
    engine = Engine(small_model, "cpu", "cpu", "bfloat16")
    assert scores == [result.pred_score for result in engine.predict(pictures)]


@pytest.mark.skipif(library.amx_missing() is None, reason="has AMX")
def test_a_plan_in_bfloat16_without_amx_says_that_it_was_not_checked(small_model, tmp_path):
    metadata = export.export(small_model, tmp_path / "plan", Request("plan", precision="bfloat16"))
    assert "for processors with AMX" in metadata.certificates[0]["not_checked"]
    with pytest.raises(BackendError, match="for processors with AMX"):
        sprfast.load(tmp_path / "plan")


def test_what_scores_differently_is_not_written(small_model, tmp_path, monkeypatch):
    before = (tmp_path / "a").write_bytes(b"before")
    folded = export.fold(small_model)
    wrong = dataclasses.replace(folded, head_bias=folded.head_bias + np.float32(0.01))
    monkeypatch.setattr(export, "fold", lambda model: wrong)
    for target in ("onnx", "plan"):
        with pytest.raises(CheckFailedError, match=r"probe image is off by .*; no file was written"):
            export.export(small_model, tmp_path / "a", Request(target))
        assert (tmp_path / "a").stat().st_size == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_flips_a_verdict_is_not_written(small_model, pictures, tmp_path):
    """A threshold between the scores that an image has in 32 and in 16 bits."""
    request = Request("onnx", precision="float16")
    model = with_mode(small_model, threshold=None)
    exact = Engine(model, "eager", "cpu").predict(pictures[0]).pred_score
    export.export(model, tmp_path / "16", request, pictures)
    rounded = Runner(export_file.read(tmp_path / "16")).predict(pictures[0]).pred_score
    between = with_mode(model, threshold=manual((exact + rounded) / 2))
    with pytest.raises(CheckFailedError, match=r"verdicts that flip: 1.0 where 0.0 is allowed; no file was written"):
        export.export(between, tmp_path / "a", request, pictures)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": "coreml"}, r"--to coreml: not known, choose from onnx, tensorrt, plan"),
        ({"target": "onnx", "precision": "fp8"}, r"--precision fp8: not known"),
        ({"target": "onnx", "quantization": "int4"}, r"--quantize int4: not known, choose from int8, float8"),
        ({"target": "onnx", "size": (8, 32)}, "--size 8x32: expected at least 16 pixels"),
        ({"target": "onnx", "batch": 0}, "--batch 0: expected 1 to 4096 images"),
        ({"target": "plan", "size": (64, 64)}, "--to plan: takes no size"),
        ({"target": "plan", "precision": "float16"}, "--to plan: takes no size"),
    ],
)
def test_what_cannot_be_asked_for(options, match):
    with pytest.raises(InputError, match=match):
        Request(**options)


def test_images_of_another_size_than_the_export_are_refused(small_model, pictures, tmp_path):
    with pytest.raises(
        InputError, match=r"32x32 pixels .height x width. at the network's input, this export takes 48x32 only"
    ):
        export.export(small_model, tmp_path / "a", Request("onnx", size=(48, 32)), pictures)
    with pytest.raises(InputError, match="cannot be written"):
        export.export(small_model, tmp_path / "nosuch" / "a", Request("onnx"))
    assert not list(tmp_path.iterdir())


def test_commands_export_predict_calibrate_and_info(run, model_path, pictures, tmp_path):
    expected = json.loads(run("predict", model_path, *pictures, "--backend", "eager", "--json")[1])["results"]
    for target in ("onnx", "plan"):
        path = tmp_path / target
        code, out, _ = run("export", model_path, "--to", target, "-o", path, "--images", pictures[0].parent, "--json")
        assert code == 0
        assert json.loads(out)["certificates"][0]["images"] == len(pictures)
        code, out, _ = run("predict", path, *pictures, "--json")
        got = json.loads(out)
        assert got["backend"] == {"onnx": "onnxruntime", "plan": "cpu"}[target]
        assert [row["verdict"] for row in got["results"]] == [row["verdict"] for row in expected]
        assert [row["pred_score"] for row in got["results"]] == pytest.approx(
            [row["pred_score"] for row in expected], rel=1e-5
        )
        code, out, _ = run("calibrate", path, pictures[0].parent, "--false-reject-rate", "0.4", "--json")
        chosen = json.loads(out)["threshold"]
        assert chosen["rank"] == 3
        code, out, _ = run("info", path, "--json")
        assert json.loads(out)["threshold"] == chosen
        assert run("predict", path, *pictures, "--json")[0] == 0
        assert "certificate.probe_relative_rms" in run("info", path)[1]


def test_commands_refuse_in_one_sentence(run, model_path, pictures, tmp_path):
    exported = tmp_path / "a.onnx"
    run("export", model_path, "--to", "onnx", "-o", exported)
    for arguments, status, match in (
        (
            ("export", model_path, "--to", "onnx", "-o", tmp_path / "b", "--size", "big"),
            2,
            "--size 'big': write N or HEIGHTxWIDTH",
        ),
        (("export", exported, "--to", "plan", "-o", tmp_path / "b"), 2, "not a safetensors file"),
        (("export", model_path, "--to", "onnx", "-o", tmp_path / "b", "--quantize", "int8"), 2, "needs good images"),
        (
            ("predict", exported, *pictures, "--precision", "float16"),
            2,
            "an export has the precision that it was exported in",
        ),
        (("predict", exported, *pictures, "--backend", "tensorrt"), 3, "tensorrt"),
        (("evaluate", exported, tmp_path, "--level", "0.1:1"), 2, "an export has the sigma levels"),
    ):
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (status, "", 1), arguments
        assert match in err
    assert not (tmp_path / "b").exists()


def test_parity_of_an_export_with_its_model_on_images(run, small_model, model_path, pictures, tmp_path):
    exported = tmp_path / "a.onnx"
    run("export", model_path, "--to", "onnx", "-o", exported)
    code, out, _ = run("parity", model_path, "--images", pictures[0].parent, "--export", exported, "--json")
    assert code == 0
    assert json.loads(out)["backend"] == "onnxruntime"
    other = dataclasses.replace(
        small_model, weights={name: 1.01 * value for name, value in small_model.weights.items()}
    )
    model_file.save(model_path, other)
    code, _, err = run("parity", model_path, "--images", pictures[0].parent, "--export", exported)
    assert code == 2
    assert "made from another model" in err
