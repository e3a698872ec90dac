"""`--report` of evaluate and predict: what is in the page, and how it is refused."""

import json
import os
import re

import numpy as np
import PIL.Image
import pytest

from sprfast.evaluation import results_page

NAMES = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{ 7*7 }}",
    "划痕",
    os.fsdecode(b"lot-\xff"),
]


def data_of(page):
    """The rows of a page, by column."""
    found = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    return found, [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def scripts(page):
    return re.findall(r"<script(?: type=\"([^\"]+)\")?", page)


def test_an_evaluation_has_every_image_mistakes_first_and_asks_for_nothing(run, data_set, model_path, tmp_path):
    run("calibrate", model_path, "--threshold", "1e9")
    code, _, err = run("evaluate", model_path, data_set, "--category", "bolt", "--report", tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text("utf-8")
    found, rows = data_of(page)
    assert (code, "out.html" in err) == (0, True)
    assert [row["kind"] for row in rows] == ["dent", "dent", "good", "good"]  # all pass: what is missed comes first
    assert rows[0]["score"] <= rows[1]["score"]
    assert (found["threshold"]["value"], found["threshold"]["source"]) == (1e9, "manual")
    blocks = json.loads(re.search(r'id="block-0">(.*?)</script>', page, re.S)[1])
    assert all(all(parts[:2]) for parts in blocks)
    assert [bool(truth) for *_, truth in blocks] == [True, True, False, False]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    for said in ("image_AUROC", "model SHA-256", "published", "numpy"):
        assert said in page


@pytest.mark.parametrize("name", [name.replace("/", "∕") for name in NAMES])
def test_no_name_is_markup(run, data_set, model_path, tmp_path, name):
    for part in ("test", "ground_truth"):
        (data_set / "bolt" / part / "dent").rename(data_set / "bolt" / part / name)
    (data_set / "bolt").rename(data_set / name)
    code, _, _ = run("evaluate", model_path, data_set, "--category", name, "--report", tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text("utf-8")
    assert code == 0
    assert scripts(page) == ["application/json", "application/json", ""]
    assert name.replace("\udcff", r"\xff") in {row["kind"] for row in data_of(page)[1]}
    assert "<img" not in page
    assert "49" not in re.search(r"<h1>(.*?)</h1>", page)[1]


def test_text_that_ends_a_script_is_data():
    text = results_page._embedded({"name": "</script><!--"})
    assert "<" not in text
    assert json.loads(text) == {"name": "</script><!--"}


def test_predictions_have_errors_first_and_no_labels(run, model_path, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    code, _, _ = run("predict", model_path, *pictures, broken, "--report", tmp_path / "out.html")
    found, rows = data_of((tmp_path / "out.html").read_text("utf-8"))
    scores = [row["score"] for row in rows[1:]]
    assert code == 1
    assert rows[0]["verdict"] == "ERROR"
    assert "broken.png" in rows[0]["reason"]
    assert scores == sorted(scores, reverse=True)
    assert found["labelled"] is False
    assert {row["label"] for row in rows} == {None}


def test_a_page_that_cannot_be_is_refused_before_the_scoring(run, data_set, model_path, pictures, tmp_path):
    image = data_set / "bolt" / "test" / "dent" / "000.png"
    for report in (tmp_path / "missing" / "out.html", tmp_path, image, model_path):
        for command in (
            ["evaluate", model_path, data_set, "--category", "bolt"],
            ["predict", model_path, image],
        ):
            code, out, err = run(*command, "--report", report)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert "cannot be written" in err or "read here" in err


def test_a_page_is_not_for_ray_nor_for_a_run_that_goes_on(run, model_path, pictures, tmp_path):
    report = ["--report", tmp_path / "out.html", "-o", tmp_path / "out"]
    for more in (["--resume"], ["--ray", "local"]):
        code, _, err = run("predict", model_path, pictures[0], *report, *more)
        assert (code, "--report" in err, err.count("\n")) == (2, True, 1)


def test_more_images_than_a_page_holds_are_a_sentence(run, data_set, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(results_page, "MOST_IMAGES", 3)
    code, _, err = run("evaluate", model_path, data_set, "--category", "bolt", "--report", tmp_path / "out.html")
    assert (code, "4 images, a page holds 3 at most" in err) == (2, True)


def test_every_category_has_its_page_in_the_folder(run, data_set, model_path, tmp_path):
    for category in ("bolt", "nut"):
        os.link(model_path, tmp_path / f"{category}.safetensors")
    code, _, _ = run("evaluate", tmp_path, data_set, "--category", "all", "--report", tmp_path / "pages")
    assert code == 0
    assert sorted(os.listdir(tmp_path / "pages")) == ["bolt.html", "nut.html"]


def test_the_file_is_replaced_whole_or_not_at_all(run, model_path, pictures, tmp_path, monkeypatch):
    report = tmp_path / "out.html"
    report.write_text("before")
    monkeypatch.setattr(results_page, "_plain", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("predict", model_path, pictures[0], "--report", report)
    assert report.read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors", "out.html"]


def test_pictures_take_no_more_than_there_is_room_for(run, model_path, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for number in range(12):  # noise, of which every byte counts
        PIL.Image.fromarray(random.integers(0, 256, (600, 800, 3), np.uint8)).save(tmp_path / f"{number:02}.png")
    sizes = {}
    for most in (400_000, 60_000, 2_000):
        monkeypatch.setattr(results_page, "MOST_BYTES", most)
        run("predict", model_path, *sorted(tmp_path.glob("*.png")), "--report", tmp_path / "out.html")
        page = (tmp_path / "out.html").read_text("utf-8")
        sizes[most] = sum(map(len, re.findall(r'id="block-\d+">(.*?)</script>', page, re.S)))
        assert sizes[most] <= most
    assert sizes[400_000] > 2 * sizes[60_000]
    assert "The 12 images of least interest are listed without pictures" in page
