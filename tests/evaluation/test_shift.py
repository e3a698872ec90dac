"""The page of a shift."""

import datetime
import math

import numpy as np
import pytest

from sprfast.errors import InputError
from sprfast.evaluation import shift
from sprfast.formats import verdict_log
from sprfast.formats.verdict_log import VerdictLog
from sprfast.method import threshold

BEGIN = datetime.datetime(2026, 11, 30, 5, 2, tzinfo=datetime.timezone.utc)
CALIBRATED = threshold.calibrate([0.01 * each for each in range(1, 31)], 0.1)  # a threshold of about 0.28


def written(path, verdicts, seconds=60.0, model="a1", limit=CALIBRATED):
    """A log of answers at `seconds` apart, of which those that pass have half the threshold."""
    scores = {"PASS": 0.5, "REJECT": 2.0, "ERROR": math.nan}
    with VerdictLog(path) as log:
        log.add(verdict_log.model(model, limit))
        for number, verdict in enumerate(verdicts):
            said = ("late <b>" if verdict == "ERROR" else None, model)
            fields = verdict_log.answer(f"[{number}]", verdict, limit.value * scores[verdict], limit.value, *said)
            at = BEGIN + datetime.timedelta(seconds=seconds * number)
            log.add(fields | {"time": at.isoformat(timespec="milliseconds")})
    return path


def test_what_was_promised_stands_beside_what_was_seen(tmp_path):
    path = written(tmp_path / "verdicts.jsonl", ["PASS"] * 190 + ["REJECT"] * 10 + ["ERROR"] * 5)
    found = shift.read(path)
    assert found.models == {("a1", CALIBRATED.value): {"PASS": 190, "REJECT": 10, "ERROR": 5}}
    page = shift.render(found, path.name)
    assert "at most 10 %, from 30 good images" in page
    assert "10 of 200 scored parts, 5.00 % (95 % interval 2.74 to 8.96 %)" in page
    assert "no more than the promise allows" in page
    written(path, ["REJECT"] * 60)
    assert "more than false rejects at this rate explain" in shift.render(shift.read(path), path.name)
    written(path, ["PASS"], model="b2", limit=threshold.manual(1.5))
    page = shift.render(shift.read(path), path.name)
    assert page.count("<dt>promised</dt>") == 2
    assert "nothing: not calibrated" in page


def test_interval_is_wilsons():
    for events, total in ((0, 10), (3, 10), (10, 10), (7, 5000)):
        low, high = shift.interval(events, total)
        for rate in {low, high} - {0.0, 1.0}:  # where the normal test of the rate is at its limit
            assert abs(events / total - rate) == pytest.approx(1.959964 * math.sqrt(rate * (1 - rate) / total))


def test_hours_count_every_part_once(tmp_path):
    found = shift.read(written(tmp_path / "log", ["PASS", "REJECT", "ERROR"] * 60))
    rows = shift._hours(found)
    assert [sum(int(count) for count in row["counts"]) for row in rows] == [58, 60, 60, 2]
    assert rows[1]["counts"] == ["20", "20", "20"]
    assert rows[1]["share"] == "50.00 %"


def test_bars_and_lines_lie_in_their_plots(tmp_path):
    rejects = ["PASS", "REJECT", "ERROR", "PASS"] * 100
    for name, seconds in (("short", 0.01), ("shift", 60), ("weeks", 30_000)):
        found = shift.read(written(tmp_path / name, rejects, seconds))
        bars = shift._bars(found)
        assert 1 <= len(bars["bars"]) <= shift.BARS
        assert all(bar["rejects"] + bar["errors"] <= 100 and bar["x"] < 100 for bar in bars["bars"])
        drift = shift._drift(found)
        points = np.array([point.split(",") for band in drift["bands"] for point in band.split()], float)
        assert points.min() >= 0
        assert points.max() <= 100


def test_a_time_without_parts_is_a_gap_and_no_line(tmp_path):
    path = written(tmp_path / "log", ["PASS"] * 120)
    with VerdictLog(path) as log:
        at = BEGIN + datetime.timedelta(hours=6)
        log.add(verdict_log.answer(1, "PASS", 0.1, CALIBRATED.value, None, "a1") | {"time": at.isoformat()})
    drift = shift._drift(shift.read(path))
    assert (len(drift["lines"]), len(drift["dots"])) == (1, 1)
    assert "0.50 of the limit at first" in drift["sentence"]
    assert "at the calibration it was 0.55" in drift["sentence"]


def test_a_page_without_a_part_that_passed(tmp_path):
    found = shift.read(written(tmp_path / "log", ["ERROR"] * 3))
    page = shift.render(found, "log")
    assert "No part passed." in page
    assert "no part was scored" in page
    assert "late &lt;b&gt;" in page


def test_only_the_time_asked_for_is_counted(tmp_path):
    path = written(tmp_path / "log", ["PASS", "REJECT"] * 60)
    since, until = (BEGIN + datetime.timedelta(minutes=each) for each in (10, 20))
    found = shift.read(path, since, until)
    assert found.times.size == 10
    assert found.verification.answers == 120
    with pytest.raises(InputError, match="has no answer in this time"):
        shift.read(path, BEGIN + datetime.timedelta(days=1))


def test_a_changed_log_is_said_to_be_on_the_page(tmp_path):
    path = written(tmp_path / "log", ["PASS"] * 50)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20] + lines[21:]))
    found = shift.read(path)
    assert found.times.size == 19
    assert "not as it was written: log: line 21: deleted: record 21 is missing" in shift.render(found, "log")


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
    page = shift.render(shift.read(written(tmp_path / "log", ["PASS", "REJECT"] * 20)), "log")
    assert not any(word in page for word in ("http:", "https:", "<script", "url(", "@import", " src="))
