"""The page of a station in a real browser: its stream, its buttons, and what it says of what is
missing.
"""

import json
import urllib.parse

import PIL.Image
import pytest

from sprfast.errors import CameraError
from sprfast.line import sources
from support import browser
from support.line_cases import frame
from support.station_cases import serving

pytestmark = [pytest.mark.process, pytest.mark.skipif(browser.program() is None, reason=browser.ADVICE)]

SEEN = """window.delays = {};
new MutationObserver(() => requestAnimationFrame(() => {
  for (const number of cards.keys()) {
    const answer = answers.find(each => each.number === number);
    if (answer.number > FIRST && !(number in delays)) delays[number] = Date.now() / 1000 - answer.time;
  }
})).observe(document.getElementById("rejects"), { childList: true })"""


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser() as opened:
        yield opened


@pytest.fixture
def station(model_path):
    with serving(model_path) as served:
        yield served


@pytest.fixture
def page(chromium, station):
    """The page as its user opens it; without an error, and without a request to another machine."""
    chromium.requests.clear()
    chromium.errors.clear()
    chromium.open(station.server.url)
    chromium.until("state")
    yield chromium
    assert not chromium.errors
    assert all(url.startswith((station.server.address, "data:")) for url in chromium.requests)


def text(page, id):
    return page.run(f"document.getElementById({json.dumps(id)}).textContent")


def says(page, id, words):
    """Wait until an element's text has these words in it."""
    page.until(f"document.getElementById({json.dumps(id)}).textContent.includes({json.dumps(words)})")


def rejects(station, count):
    """Push pictures until so many were rejected."""
    number = len(station.heard.answers)
    while sum(answer.verdict == "REJECT" for answer in station.heard.answers) < count:
        station.answered(str(number))
        number += 1


@pytest.mark.clock
def test_a_reject_appears_within_half_a_second_of_its_answer(page, station):
    rejects(station, 1)
    page.until("cards.size === 1 && shown === state.picture")  # what is made once is there
    page.run(SEEN.replace("FIRST", str(len(station.heard.answers))))
    for count in range(2, 12):
        rejects(station, count)
        page.until(f"cards.size === {count}")
    page.until("Object.keys(delays).length === 10")
    delays = page.run("Object.values(delays)")
    assert max(delays) < 0.5, delays


@pytest.mark.parametrize("width", [1400, 400])
def test_what_the_line_answers_is_seen(page, station, width):
    page.resize(width, 900, width == 400)
    rejects(station, 3)
    station.source.push("lost", None, fault=CameraError("camera: the picture is too late"))
    passed = sum(answer.verdict == "PASS" for answer in station.heard.answers)
    page.until("document.querySelectorAll('#counts b')[2].textContent === '1'")
    assert page.run("[...document.querySelectorAll('#counts b')].map(each => each.textContent)")[:2] == [
        str(passed),
        "3",
    ]
    says(page, "rejects", "camera: the picture is too late")
    page.until("[...document.querySelectorAll('#view, .card img')].every(each => each.naturalWidth === 32)")
    assert text(page, "state") == "OK"
    assert "× limit" in text(page, "shown")
    drawn = page.run("""(() => {
      const { width, height } = document.getElementById("chart");
      const pixels = document.getElementById("chart").getContext("2d").getImageData(0, 0, width, height).data;
      const colours = new Set();
      for (let at = 0; at < pixels.length; at += 4) {
        if (pixels[at + 3] === 255) colours.add(pixels.slice(at, at + 3).join());
      }
      return ["76,195,138", "255,107,96", "242,184,75"].every(each => colours.has(each));
    })()""")
    assert drawn  # parts that passed, rejects and errors
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_picture_from_before_is_opened_and_left_again(page, station):
    rejects(station, 2)
    page.until("cards.size === 2 && shown === state.picture")
    first = page.run("[...cards.keys()][0]")
    page.click(".card:last-child img")
    page.until(f"shown === {first}")
    assert text(page, "which") == "A picture from before"
    station.answered("100")
    page.until("state.counts.taken === answers.length")
    assert page.run("shown") == first
    page.click("#live")
    page.until("shown === state.picture")
    assert text(page, "which") == "Current picture"


@pytest.mark.parametrize("given", ["", "?token=wrong"])
def test_buttons_are_refused_without_the_token(chromium, station, given):
    rejects(station, 1)
    chromium.open(station.server.address + given)
    chromium.until("state && cards.size")
    enabled = "[...document.querySelectorAll('.acts, .card button')].map(each => !each.disabled)"
    if not given:
        assert not any(chromium.run(enabled))
        assert "need the address that the station printed" in text(chromium, "hint")
        chromium.run("document.querySelectorAll('.acts, .card button').forEach(each => { each.disabled = false; })")
    for button in ("#pause", ".card button"):
        chromium.run("say('', false)")
        chromium.click(button)
        says(chromium, "said", "the token is missing or wrong; open the address that the station printed")
    assert not station.station.paused
    assert not station.station.marked.names()


def test_pause_and_go_on(page, station):
    page.click("#pause")
    says(page, "said", "paused: every part is answered with ERROR")
    page.until("document.getElementById('state').textContent === 'PAUSED'")
    assert text(page, "pause") == "Go on"
    station.answered("1")
    assert station.heard.answers[-1].verdict == "ERROR"
    page.click("#pause")
    page.until("document.getElementById('state').textContent !== 'PAUSED'")
    station.answered("2")
    assert station.heard.answers[-1].verdict != "ERROR"


def test_a_reject_is_marked_as_good_and_back(page, station):
    rejects(station, 1)
    page.until("document.querySelectorAll('.card button').length === 1")
    page.click(".card button")
    says(page, "said", "is marked as good (1 in all)")
    says(page, "recalibrate", "Recalibrate from 1 marked")
    assert page.run("document.querySelector('.card button').textContent") == "Marked good ✓"
    (kept,) = station.station.marked.folder.iterdir()
    assert PIL.Image.open(kept).size == (32, 32)
    page.click(".card button")
    says(page, "recalibrate", "Recalibrate from 0 marked")
    assert not station.station.marked.names()


def test_a_missing_camera_is_said_until_it_is_there(chromium, model_path):
    there = []

    def opened():
        if not there:
            raise CameraError("camera 0: cannot be opened")
        return sources.SimulatedLine([frame(1)], "rgb", frames=1000, period=0.05).open()

    with serving(model_path, sources.Stream(opened, first_wait=0.01, longest_wait=0.01)) as station:
        chromium.open(station.server.url)
        says(chromium, "notices", "camera: no connection (camera 0: cannot be opened)")
        assert text(chromium, "state") == "FAULT"
        there.append(True)
        chromium.until("!state.faults.length && document.getElementById('state').textContent === 'OK'")
        chromium.until("answers.length && document.getElementById('view').naturalWidth === 32")
        assert text(chromium, "notices") == ""


def test_a_station_that_is_gone_is_said_and_its_successor_is_shown_alone(chromium, model_path):
    with serving(model_path) as station:
        port = urllib.parse.urlsplit(station.server.address).port
        chromium.open(station.server.url)
        rejects(station, 2)
        chromium.until("cards.size === 2")
    says(chromium, "notices", "The station does not answer; this page tries again.")
    assert text(chromium, "state") == "NO CONNECTION"
    with serving(model_path, port=port) as station:
        rejects(station, 1)
        ids = [answer.id for answer in station.heard.answers]
        shown = f"answers.map(each => each.id).join() === '{','.join(ids)}'"
        chromium.until(shown)  # it is loaded anew
        chromium.until("cards.size === 1 && state.counts.REJECT === 1")


def test_beyond_this_machine_a_wrong_token_is_said(chromium, model_path):
    with serving(model_path, host="0.0.0.0") as station:
        port = urllib.parse.urlsplit(station.server.address).port
        chromium.open(f"http://127.0.0.1:{port}/?token=wrong")
        assert chromium.run("document.body.textContent").startswith("the token is missing or wrong; open the address")
        chromium.open(f"http://127.0.0.1:{port}/?token={station.server.access.token}")
        chromium.until("state")
    with serving(model_path, host="0.0.0.0", port=port):  # its token is another one
        says(chromium, "notices", "the token is missing or wrong; open the address that the station printed")
        assert text(chromium, "state") == "NO CONNECTION"
