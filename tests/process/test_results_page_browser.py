"""The results page in a real browser: the line is dragged by mouse, finger and keyboard, and the
counts follow.
"""

import dataclasses
import re

import numpy as np
import PIL.Image
import pytest

from sprfast.data import datasets
from sprfast.engine.engine import Engine
from sprfast.evaluation.evaluate import evaluate_among
from sprfast.evaluation.results_page import ResultsPage, write_evaluation
from sprfast.method import threshold
from support import browser

pytestmark = [pytest.mark.process, pytest.mark.skipif(browser.program() is None, reason=browser.ADVICE)]

ODD = "</script><b>划痕$"  # a kind's name, with a letter that looks like a slash
SUM = """(() => {
  const { width, height } = document.getElementById("large-picture");
  const pixels = document.getElementById("large-picture").getContext("2d").getImageData(0, 0, width, height).data;
  return pixels.reduce((sum, value) => sum + value);
})()"""


class OneProcess:
    """As a process group of one."""

    rank, world_size = 0, 1

    def gather(self, own):
        return [own]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 good images and 12 of a defect, whose contrast and so whose scores overlap."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(5)
    kind = ODD.replace("/", "∕")

    def write(path, contrast):
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray((random.random((32, 48, 3)) * 255 * contrast).astype(np.uint8)).save(path)

    write(root / "train" / "good" / "0.png", 0.2)
    for number in range(40):
        write(root / "test" / "good" / f"{number:02}.png", 0.1 + 0.015 * number)
    for number in range(12):
        write(root / "test" / kind / f"{number:02}.png", 0.4 + 0.05 * number)
        mask = np.zeros((32, 48), np.uint8)
        mask[8:20, 10:30] = 255
        (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(mask).save(root / "ground_truth" / kind / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def engine(small_model, data):
    """Rejects about a tenth of the good images."""
    results = Engine(small_model, "eager", "cpu").predict(sorted((data / "test" / "good").iterdir())[1::2])
    limit = threshold.calibrate([result.pred_score for result in results], 0.1)
    mode = dataclasses.replace(small_model.scoring_mode, threshold=limit)
    return Engine(dataclasses.replace(small_model, scoring_mode=mode), "eager", "cpu")


@pytest.fixture(scope="module")
def page(engine, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "out.html"
    evaluate_among(
        OneProcess(),
        engine,
        datasets.load_category(data, None),
        on_maps=lambda evaluation, maps: write_evaluation(path, engine, data, "published", evaluation, maps),
    )
    return path


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser() as opened:
        yield opened


@pytest.fixture
def opened(chromium, page):
    """The page as it opens; without an error, and without asking for anything but itself."""
    chromium.requests.clear()
    chromium.errors.clear()
    chromium.open(page)
    yield chromium
    assert not chromium.errors
    assert {url for url in chromium.requests if not url.startswith("data:")} == {page.as_uri()}


def counts(opened):
    """Good and bad images accepted and rejected, as the table says."""
    cells = opened.run("[...document.querySelectorAll('#confusion td')].map((cell) => cell.textContent)")
    return [int(cell.split()[0]) for cell in cells]


def scores(opened, label):
    found = opened.run("JSON.parse(document.getElementById('data').textContent).rows.map((row) => [row[2], row[3]])")
    return np.array([score for each, score in found if each == label])


def line(opened):
    return float(opened.run("document.getElementById('slider').getAttribute('aria-valuenow')"))


def agrees(opened, engine):
    """The counts are those of the scores at the line."""
    good, bad = scores(opened, 0), scores(opened, 1)
    at = line(opened) * engine.threshold.value
    expected = [sum(good <= at), sum(good > at), sum(bad <= at), sum(bad > at)]
    assert counts(opened) == expected
    assert f"{expected[1]} of 40 good images" in opened.run("document.getElementById('sentence').textContent")
    return expected


def test_the_page_begins_at_the_threshold_with_its_promise(opened, engine):
    good, bad, limit = scores(opened, 0), scores(opened, 1), engine.threshold.value
    assert counts(opened) == [sum(good <= limit), sum(good > limit), sum(bad <= limit), sum(bad > limit)]
    promise = opened.run("document.getElementById('promise').textContent")
    assert "at most 10 % of good parts rejected" in promise
    assert "from 20 good images" in promise
    assert f"Seen: {100 * sum(good > limit) / 40:.1f}" in promise.replace("\xa0", " ")


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("by", ["drag", "touch"])
def test_the_line_is_dragged_and_the_counts_change(opened, engine, by, width):
    opened.resize(width, 900, by == "touch")
    opened.until(f"document.querySelector('#histogram svg').viewBox.baseVal.width <= {width}")
    before = counts(opened)
    x, y = opened.middle("#slider .handle")
    seen = []
    for far in (-0.15 * width, 0.1 * width):
        getattr(opened, by)((x, y), (x + far, y))
        x += far
        seen.append(agrees(opened, engine))
    assert before != seen[0] != seen[1]
    assert seen[0][1] > before[1]  # to the left more good images are rejected
    assert "sprfast calibrate MODEL --threshold" in opened.run("document.getElementById('command').textContent")
    opened.click("#back")
    assert counts(opened) == before


def test_the_keyboard_moves_the_line(opened, engine):
    before = counts(opened)
    opened.run("document.getElementById('slider').focus()")
    for _ in range(3):
        opened.key("PageDown")
    assert line(opened) < 1
    assert agrees(opened, engine)[1] > before[1]
    opened.key("Home")
    assert counts(opened) == [0, 40, 0, 12]
    opened.key("End")
    assert counts(opened) == [40, 0, 12, 0]


def test_a_number_places_the_line(opened, engine):
    opened.run("(() => { const at = document.getElementById('line'); at.value = '1.2'; at.onchange(); })()")
    assert line(opened) == pytest.approx(1.2)
    agrees(opened, engine)


def test_mistakes_come_first_and_follow_the_line(opened, engine):
    badges = "[...document.querySelectorAll('.card .badge')].map((badge) => badge.textContent)"
    rejected, missed = counts(opened)[1], counts(opened)[2]
    assert 0 < rejected + missed < 24
    expected = ["rejected, good"] * rejected + ["accepted, bad"] * missed
    assert opened.run(badges)[: rejected + missed] == expected
    opened.run("document.getElementById('slider').focus()")
    opened.key("End")
    assert opened.run(badges)[:12] == ["accepted, bad"] * 12


def test_a_picture_opens_large_with_all_that_is_known_of_it(opened):
    drawn = "[...document.querySelectorAll('.tiles canvas')].every((canvas) => canvas.width > 1)"
    opened.until(drawn)
    colours = []
    for layer in range(4):
        opened.click(f".card .tiles button:nth-child({layer + 1})")
        opened.until("document.getElementById('large').open && document.getElementById('large-picture').width === 900")
        colours.append(opened.run(SUM))
        assert opened.run("document.querySelector('#large-layers [aria-pressed=true]').textContent")
        opened.key("ArrowRight")
        assert opened.run("document.getElementById('large-name').textContent").endswith(".png")
        opened.key("Escape")
        opened.until("!document.getElementById('large').open")
    assert len(set(colours)) == 4


def test_a_name_is_text(opened):
    names = opened.run("[...document.querySelectorAll('#metrics ~ * th, tbody th')].map((each) => each.textContent)")
    assert ODD.replace("/", "∕") in names
    assert opened.run("document.querySelectorAll('b').length") == 0


def test_pages_filters_and_search(opened):
    said = "document.querySelector('.pager span').textContent"
    assert opened.run(said) == "1–24 of 52 images, page 1 of 3"
    opened.click(".pager button:last-child")
    assert opened.run(said) == "25–48 of 52 images, page 2 of 3"
    opened.run("(() => { const s = document.getElementById('search'); s.value = '07'; s.oninput(); })()")
    assert opened.run(said) == "1–2 of 2 images, page 1 of 1"


def test_pages_without_labels_or_threshold(chromium, small_model, pictures, tmp_path):
    mode = dataclasses.replace(small_model.scoring_mode, threshold=None)
    engine = Engine(dataclasses.replace(small_model, scoring_mode=mode), "eager", "cpu")
    with ResultsPage(tmp_path / "out.html", engine, tmp_path, "published", 5) as page:
        for path in [*pictures, tmp_path / "missing.png"]:
            page.add(path, engine.predict(path))
        page.write("Predictions", complete=False)
    chromium.errors.clear()
    chromium.open(tmp_path / "out.html")
    sentence = chromium.run("document.getElementById('sentence').textContent")
    assert re.match(r"At score [\d.]+, 0 of 4 images are rejected .*; 1 image could not be scored\.", sentence)
    assert "no threshold" in chromium.run("document.getElementById('promise').textContent")
    x, y = chromium.middle("#slider .handle")
    chromium.drag((x, y), (x - 600, y))
    assert counts(chromium)[1] > 0
    assert "INCOMPLETE" in chromium.run("document.body.textContent")
    assert not chromium.errors
