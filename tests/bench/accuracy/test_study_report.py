"""Reports of `sprfast study`: files, tables and pictures, and the commands that make them."""

import copy
import itertools
import json

import numpy as np
import PIL.Image
import pytest

from sprfast.bench.accuracy import measure, pictures, report
from sprfast.bench.accuracy.rows import ROWS
from sprfast.config import TrainingConfig
from sprfast.errors import InputError
from sprfast.evaluation import calibration, metrics
from sprfast.formats import model as model_file
from sprfast.training.recipes import RECIPES
from support import study_cases
from support.bench_reports import printed
from support.command_line import next_command

TRAIN = ["--size", "16", "--width", "32", "--steps", "2", "--workers", "0"]


@pytest.fixture
def study_root(tmp_path):
    """A category without masks."""
    return study_cases.write_category(tmp_path / "data" / "nut", good=8, defective=4, masks=False)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "report.json"
    report.write(study_cases.document(), path)
    return path


def nulls(document):
    """A copy in which no metric is defined, and no model was trained here."""
    found = copy.deepcopy(document)
    for row in (*found["rows"], *found["settings"].values()):
        row["metrics"] = row["difference"] = dict.fromkeys(metrics.KEYS)
    found["backends"][0] |= {
        "image_AUROC": None,
        "pixel_AUROC": None,
        "from_eager": {"image_AUROC": None, "pixel_AUROC": None},
    }
    for each in found["models"]:
        each["provenance"] = {}
    return found


def refused(run, *arguments):
    """The one line of an error of usage or input."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("sprfast: ")
    assert len(err.strip().splitlines()) == 1
    return err


def test_a_report_is_the_same_after_a_file(written):
    assert report.load(written) == json.loads(json.dumps(study_cases.document()))
    report.write(study_cases.document(category="cable"), written)
    assert report.load(written)["category"] == "cable"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a report of `sprfast study`"),
        (b"PNG\x00\xff", "is not a report of `sprfast study`"),
        (b"[1, 2]", "is not a report of `sprfast study`"),
        (b'"text"', "is not a report of `sprfast study`"),
        (b"[" * 200_000, "is not a report of `sprfast study`"),
        (b"{}", "KeyError: 'schema_version'"),
        (b'{"schema_version": 1, "settings": {}, "candidates": {}}', "with schema_version 1"),
        (json.dumps(study_cases.document(schema_version=measure.SCHEMA_VERSION + 1)).encode(), "with schema_version 1"),
        (json.dumps(study_cases.document(images={"test": float("nan")})).encode(), "NaN"),
        (json.dumps(study_cases.document()).encode()[:-50], "is not a report of `sprfast study`"),
        (None, "cannot be read (No such file or directory)"),
    ],
    ids=["empty", "binary", "list", "text", "deep", "other", "other report", "newer", "not a number", "cut", "absent"],
)
def test_a_foreign_damaged_or_newer_file_is_one_line_that_names_it(run, written, tmp_path, content, says):
    path = tmp_path / "other.json"
    if content is not None:
        path.write_bytes(content)
    for arguments in ((path, "--json"), (written, path)):
        err = refused(run, "study", "show", *arguments)
        assert str(path) in err
        assert says in err
        assert str(written) not in err


@pytest.mark.parametrize(
    "change",
    [
        {"rows": None},
        {"rows": [{"name": 5}]},
        {"settings": []},
        {"settings": {"single": {}}},
        {"times": {}},
        {"times": {"settings": {}}},
        {"backends": [{"backend": 5, "reason": "none"}]},
        {"images": {}},
        {"category": 5},
        {"models": []},
        {"models": [{"provenance": {"steps": "60"}}]},
    ],
    ids=str,
)
def test_a_report_with_a_damaged_part_is_one_line_that_names_the_file(run, written, tmp_path, change):
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(study_cases.document(**change)))
    for arguments in ((path,), (written, path)):
        assert f"{path}: is a damaged report of `sprfast study`" in refused(run, "study", "show", *arguments)


def test_the_widest_report_fits_110_columns_with_nothing_cut_off():
    text = printed(report.table(study_cases.document()), 110)
    assert max(map(len, text.splitlines())) <= 110
    assert "…" not in text
    lines = [line.strip() for line in text.splitlines()]
    for row in ROWS:
        assert any(line.startswith(f"{row.name} ") for line in lines), row.name
    for name in (*calibration.SETTINGS, "published"):
        assert sum(line.startswith(f"{name} ") and "12.34" in line for line in lines) == 1
    assert text.count("90.0±10.0") == (len(ROWS) + 1 + len(calibration.SETTINGS)) * len(metrics.KEYS)
    assert "2000 test images (1000 defective)" in text
    assert "pip install 'sprfast[onnx]'" in text


def test_rates_beyond_their_interval_have_a_star_and_refused_ones_a_dash():
    text = printed(report.table(study_cases.document()), 110)
    lines = [line.split() for line in text.splitlines() if line.strip().startswith("single, maps")]
    assert [" ".join(line[2:]) for line in lines] == [
        "5 % 5.01 in 3.7-6.4 (1000) 12.30 * in 3.7-6.4 (1000) 5.01 in 3.7-6.4 (1000)",
        "1 % refused (6) refused (6) -",
    ]


def trained(recipe):
    """Models by seed, as a report has them."""
    training = TrainingConfig(**RECIPES[recipe]).to_json()
    return [{"file": "0.safetensors", "provenance": {"steps": 5994, "training": training}}] * 2


def test_an_overview_has_a_line_for_each_setting_of_each_report_and_fits_110_columns():
    reports = [
        study_cases.document(),
        study_cases.document(category="[/nut]", models=trained("published")),
        nulls(study_cases.document(category="tile")),
    ]
    text = printed(report.overview(reports), 110)
    assert max(map(len, text.splitlines())) <= 110
    assert "…" not in text
    for category in ("transistor", "[/nut]", "tile"):
        lines = [line.split() for line in text.splitlines() if line.strip().startswith(category)]
        steps = "-" if category == "tile" else "5994"
        recipe = "published" if category == "[/nut]" else "-"
        assert [line[:5] for line in lines] == [
            [category, "1024", recipe, steps, name] for name in ("published", *calibration.SETTINGS)
        ]
        assert all(line[5:7] == ["1234.5", "12.34"] for line in lines)
        assert all(line[7:] == ["-" if category == "tile" else "90.0±10.0"] * len(metrics.KEYS) for line in lines)


def test_show_prints_one_report_whole_and_several_as_an_overview(run, written, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    code, out, _ = run("study", "show", written)
    assert code == 0
    assert "independent draws, K = 3" in out
    code, out, _ = run("study", "show", written, written)
    assert code == 0
    assert "independent draws" not in out
    assert out.count("transistor") == 2 * (1 + len(calibration.SETTINGS))
    code, out, _ = run("study", "show", written, "--json")
    assert json.loads(out) == {"reports": [report.load(written)]}


def test_the_figure_is_a_picture_of_a_report_with_and_without_figures(tmp_path):
    of_published = []
    document = study_cases.document()
    better = {"mean": 0.95, "standard_error": None, "values": [0.95]}
    moved = copy.deepcopy(document)
    moved["rows"][0]["metrics"]["image_AUROC"] = better
    for index, each in enumerate((document, moved, nulls(document))):
        pictures.study(each, tmp_path / f"{index}.png")
        with PIL.Image.open(tmp_path / f"{index}.png") as picture:
            assert (picture.format, picture.size) == ("PNG", (1690, 728))
            pixels = np.asarray(picture.convert("RGB"))
        # in the published setting's colour
        of_published.append(np.argwhere((pixels == [0x0B, 0x5F, 0xA5]).all(axis=2)).tolist())
    assert of_published[0] != of_published[1]
    assert of_published[2] == []


def test_the_figure_of_a_quick_study_is_of_its_named_settings(tmp_path):
    document = study_cases.document()
    quick = document | {"rows": document["rows"][:1]}
    moved = copy.deepcopy(quick)
    moved["settings"]["single"]["metrics"]["image_AUROC"] = {"mean": 0.5, "standard_error": None, "values": [0.5]}
    drawn = []
    for index, each in enumerate((quick, moved)):
        pictures.study(each, tmp_path / f"{index}.png")
        drawn.append((tmp_path / f"{index}.png").read_bytes())
    assert drawn[0] != drawn[1]


def test_the_figure_of_several_studies_has_a_colour_a_recipe_and_a_column_a_category(run, tmp_path):
    reports, colours = [], [(0x0B, 0x5F, 0xA5), (0x15, 0x80, 0x3D)]
    for index, recipe in enumerate(("published", "repair")):
        reports.append(tmp_path / f"{index}.json")
        report.write(study_cases.document(category="[/nut]", models=trained(recipe)), reports[-1])
    nut, both = tmp_path / "nut.png", tmp_path / "both.png"
    assert run("study", "show", *reports, "--figure", nut)[0] == 0
    pixels = np.asarray(PIL.Image.open(nut).convert("RGB"))
    assert all((pixels == colour).all(axis=2).sum() > 100 for colour in colours)
    report.write(nulls(study_cases.document(category="tile")), tmp_path / "tile.json")
    assert run("study", "show", *reports, tmp_path / "tile.json", "--figure", both)[0] == 0
    assert PIL.Image.open(both).width > PIL.Image.open(nut).width


def test_nothing_is_half_written(tmp_path):
    document = study_cases.document()
    with pytest.raises(InputError, match=r"nowhere/report.json: cannot be written"):
        report.write(document, tmp_path / "nowhere" / "report.json")
    with pytest.raises(InputError, match=r"nowhere/report.png: cannot be written"):
        pictures.study(document, tmp_path / "nowhere" / "report.png")
    path = tmp_path / "old.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write(document | {"images": float("nan")}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["old.json"]
    assert path.read_text() == "old"


def test_a_study_of_given_images_without_masks_end_to_end(run, small_model, study_root, tmp_path, monkeypatch):
    """Every row, with a model of which no held-back images are known."""
    monkeypatch.setenv("COLUMNS", "110")
    model, output, figure = (tmp_path / name for name in ("model.safetensors", "report.json", "report.png"))
    model_file.save(model, study_cases.model(small_model, held_back=[]))
    with study_cases.quick():
        arguments = (
            "--category",
            "nut",
            "--fit",
            study_root / "train" / "good",
            "--seconds",
            "0.001",
            "--device",
            "cpu",
        )
        code, out, err = run("study", study_root.parent, model, *arguments, "-o", output, "--figure", figure)
    assert code == 0
    assert next_command(err) == ["calibrate", str(model), "OTHER_GOOD_IMAGES", "--setting", "SETTING"]
    found = report.load(output)
    assert [row["name"] for row in found["rows"]] == [row.name for row in ROWS]
    assert found["images"] == {"good": 16, "test": 12, "defective": 4}
    assert found["models"][0]["file"] == "model.safetensors"
    for row in (*found["rows"], *found["settings"].values()):
        for part in ("metrics", "difference"):
            assert {key for key, figures in row[part].items() if figures is None} == {"pixel_AUROC", "AUPRO"}
            assert {figures["standard_error"] for figures in row[part].values() if figures} == {None}
    assert "…" not in out
    assert all(row.name in out for row in ROWS)
    assert f"as its score would have an image_AUROC of {100 * found['brightness_AUROC']:.1f} %" in " ".join(out.split())
    assert PIL.Image.open(figure).format == "PNG"
    code, again, _ = run("study", "show", output)
    assert (code, again) == (0, out)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["-o", "nowhere/report.json"], "nowhere/report.json"),
        (["--figure", "nowhere/report.png"], "nowhere/report.png"),
        (["--seconds", "0"], "--seconds 0"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--category", "bolt"], "bolt"),
        (["--fit", "nowhere"], "--fit nowhere: is not a folder"),
        (["--fit", "data/nut/train/good/000.png"], "is not a folder"),
        (["--fit", "data/nut/test/dent"], "at least 9 good images are needed to fit on, got 4"),
        (["--fit", "data/nut/train/good", "--backend", "abacus"], "abacus"),
        ([], "got 0; train with --hold-back, or give --fit DIR"),
    ],
)
def test_a_study_that_cannot_be_is_one_line_and_leaves_nothing(
    run, model_path, study_root, tmp_path, monkeypatch, arguments, names
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert names in refused(run, "study", "data", model_path, "--category", "nut", *arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_training_by_the_fast_recipe_with_images_held_back_says_so_in_the_model(run, study_root, tmp_path):
    path = tmp_path / "nut.safetensors"
    options = ("--recipe", "fast", "--hold-back", "0.25", "--seed", "3", "--learning-rate", "2e-3")
    assert run("train", study_root, "-o", path, *TRAIN, *options)[0] == 0
    provenance = model_file.load(path).provenance
    expected = TrainingConfig(epochs=0, steps=2, hold_back=0.25, seed=3, **RECIPES["fast"] | {"learning_rate": 2e-3})
    assert provenance["training"] == expected.to_json()
    assert (provenance["training"]["batch_size"], provenance["training"]["decay"], provenance["training"]["t_max"]) == (
        4,
        "cosine",
        0.1,
    )
    names = [f"{number:03}.png" for number in range(16)]
    assert len(provenance["held_back"]) == 4
    assert provenance["held_back"] == sorted(set(names) & set(provenance["held_back"]))
    assert (provenance["images"], provenance["steps"]) == (12, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recipe", "quick"], "--recipe quick: not known, choose from published, fast"),
        (["--hold-back", "0.01"], "hold_back: 0.01 of 16 images are 0, expected at least 1 held back and 1 left"),
        (["--hold-back", "0.99"], "hold_back: 0.99 of 16 images are 16"),
        (["--hold-back", "1"], "hold_back: 1.0 is not allowed"),
        (["--hold-back", "-0.1"], "hold_back: -0.1 is not allowed"),
    ],
)
def test_a_recipe_or_share_that_cannot_be_is_one_line_and_leaves_nothing(run, study_root, tmp_path, arguments, says):
    path = tmp_path / "nut.safetensors"
    assert says in refused(run, "train", study_root, "-o", path, *TRAIN, *arguments)
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


@pytest.fixture
def drawn(monkeypatch):
    """The figures, in place of files."""
    figures = []
    monkeypatch.setattr(pictures, "_write", lambda figure, path: figures.append(figure))
    return figures


def test_no_number_is_printed_over_another_or_over_a_point(drawn):
    """Though all ways of the same passes take the same time, and score nearly the same."""
    document = study_cases.document()
    for index, row in enumerate(document["rows"]):
        figure = {"mean": 0.9 + 1e-4 * index, "standard_error": 0.01, "values": [0.9]}
        row["metrics"] = dict.fromkeys(metrics.KEYS, figure)
    pictures.study(document, "unused")
    for axes in drawn[0].axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) > 10
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_a_named_setting_has_the_colour_of_its_kind_and_both_panels(drawn):
    document = study_cases.document(rows=study_cases.document()["rows"][:1])
    document["settings"]["field"] = document["settings"]["field"] | {"divided": [{"maps": None, "field_alone": None}]}
    pictures.study(document, "unused")
    legend = {text.get_text(): text.get_color() for text in drawn[0].texts if "●" in text.get_text()}
    names = {str(number): name for number, name in enumerate(document["settings"], 1)}
    for axes in drawn[0].axes:
        colours = {names[text.get_text()]: text.get_color() for text in axes.texts}
        assert colours == dict.fromkeys(calibration.SETTINGS, legend["●  others"]) | {
            "published": legend["●  published"],
            "field": legend["●  score divided by the error field"],
        }


def test_a_category_of_any_name_is_drawn(tmp_path):
    for name in ("$", "划痕", "\udcff"):
        pictures.study(study_cases.document(category=name), tmp_path / "study.png")
