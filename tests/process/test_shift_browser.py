"""The page of a shift in a real browser."""

import datetime

import pytest

from sprfast.formats import verdict_log
from sprfast.formats.verdict_log import VerdictLog
from sprfast.method import threshold
from support import browser

pytestmark = [pytest.mark.process, pytest.mark.skipif(browser.program() is None, reason=browser.ADVICE)]

SCORES = {"PASS": 0.5, "REJECT": 2.0, "ERROR": float("nan")}
REASON = "camera: the picture came 120 ms after its trigger, which is more than is allowed"
BARS = """[...document.querySelectorAll("svg g rect:not([fill=transparent])")]
  .map(each => each.getBoundingClientRect()).filter(box => box.height > 1 && box.width > 1).length"""


@pytest.fixture
def log(tmp_path):
    """Six hours of a part a minute: every tenth is rejected, and every hundredth an error."""
    limit = threshold.calibrate([0.01 * each for each in range(1, 31)], 0.1)
    begin = datetime.datetime(2026, 11, 30, 5, tzinfo=datetime.timezone.utc)
    with VerdictLog(tmp_path / "verdicts.jsonl") as written:
        written.add(verdict_log.model("a1" * 32, limit))
        for number in range(360):
            verdict = "ERROR" if number % 100 == 50 else "REJECT" if number % 10 == 0 else "PASS"
            score, reason = limit.value * SCORES[verdict], REASON if verdict == "ERROR" else None
            fields = verdict_log.answer(f"camera-{number}", verdict, score, limit.value, reason, "a1" * 32)
            at = begin + datetime.timedelta(minutes=number)
            written.add(fields | {"time": at.isoformat(timespec="milliseconds")})
    return tmp_path / "verdicts.jsonl"


def test_the_figures_of_a_shift_are_seen(run, log, tmp_path):
    page = tmp_path / "shift.html"
    assert run("report", "--shift", log, "-o", page)[0] == 0
    with browser.Browser() as opened:
        for width in (1400, 400):
            opened.open(page, width, 900, width == 400)
            counts = opened.run("[...document.querySelectorAll('.counts b')].map(each => each.textContent)")
            assert counts == ["324", "32", "4"]
            assert opened.run(BARS) >= 24  # of rejects in each quarter of an hour
            assert opened.run("document.querySelector('polyline').getBoundingClientRect().width") > width / 2
            assert opened.run("document.documentElement.scrollWidth <= innerWidth")
            opened.click("summary")
            cut = "[...document.querySelectorAll('.wide')].map(each => each.scrollWidth - each.clientWidth)"
            assert opened.run(cut) == [0, 0]
            assert REASON in opened.run("document.querySelector('details').innerText")
        assert not opened.errors
        assert {url for url in opened.requests if not url.startswith("data:")} == {page.as_uri()}
