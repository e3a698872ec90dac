"""Reports in files: what is read, and what is refused with the name of file and field."""

import copy
import json
import math

import pytest

from sprfast.bench.core import cases, compare, report_file
from sprfast.bench.page import render as page
from sprfast.errors import InputError
from support import ROOT
from support.bench_reports import KEYS, change, synthetic

RESULTS = ROOT / "bench" / "results"


@pytest.fixture
def pair():
    return synthetic(0), synthetic(1)


def test_a_report_is_read_as_it_was_written(tmp_path, pair):
    path = tmp_path / "report.json"
    report_file.write(pair[0], path)
    assert report_file.load(path) == pair[0]
    pair[0]["candidates"]["eager"] |= {"status": "not measured", "parity": None, **dict.fromkeys(KEYS)}
    report_file.write(pair[0], path)
    assert report_file.load(str(path)) == pair[0]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\xfa", b"[" * 100_000, b'{"schema_version": 1' + b"0" * 5000 + b"}"]
)
def test_what_is_not_json_is_refused(tmp_path, content):
    path = tmp_path / "old.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"old\.json: is not JSON"):
        report_file.load(path)


def test_a_missing_file_a_folder_and_a_document_that_is_no_object_are_refused(tmp_path):
    (tmp_path / "old.json").write_text("[1]")
    for path, message in (
        ("absent.json", "cannot be read"),
        (".", "cannot be read"),
        ("old.json", "schema_version: is missing"),
    ):
        with pytest.raises(InputError, match=f"{(tmp_path / path).name}: {message}"):
            report_file.load(tmp_path / path)


REQUIRED = (
    *("schema_version", "complete", "environment", "model", "model.sha256", "model.network", "model.schedule"),
    *("input.height", "input.width", "input.samples", "device", "timed", "truth", "baseline", "candidates"),
    *(f"candidates.eager.{name}" for name in ("status", "precision", "tolerance", "parity", "parity.batch.passed")),
    *(f"candidates.eager.{name}" for name in ("offline", "offline.seconds")),
)


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_field_and_one_of_another_kind_are_named(tmp_path, pair, path):
    for value, message in (("1e-4" if path.endswith("tolerance") else -0.5, r"[.a-z0-9]*: "), (..., ": is missing")):
        change(pair[0], path, value)
        report_file.write(pair[0], tmp_path / "old.json")
        with pytest.raises(InputError, match=rf"old\.json: {path}{message}"):
            report_file.load(tmp_path / "old.json")


@pytest.mark.parametrize("version", [1, min(report_file.BEFORE) - 1, cases.SCHEMA_VERSION + 1])
def test_another_schema_version_is_refused_and_what_can_be_read_is_named(tmp_path, pair, version):
    pair[0]["schema_version"] = version
    report_file.write(pair[0], tmp_path / "old.json")
    with pytest.raises(
        InputError, match=rf"old\.json: schema_version: {version} cannot be read, only 6, 7, {cases.SCHEMA_VERSION};"
    ):
        report_file.load(tmp_path / "old.json")


@pytest.mark.parametrize("version", report_file.BEFORE)
def test_a_report_of_a_version_before_is_compared_with_a_new_one(tmp_path, pair, version):
    old = pair[0] | {"schema_version": version, "driver": "rounds"}
    for entry in old["candidates"].values():
        del entry["asked_precision"]
        for key in KEYS:
            entry[key]["rounds"] = True
    report_file.write(old, tmp_path / "old.json")
    found = compare.compare(report_file.load(tmp_path / "old.json"), pair[1], regression=0.1)
    assert [row.basis for row in found.rows].count("paired") == 2 * len(KEYS)
    assert (found.regressions, found.differences) == ([], [])


def test_the_committed_reports_can_be_compared_and_shown():
    for path in sorted(RESULTS.glob("*-2core-*.json")):
        committed = report_file.load(path)
        if committed["baseline"] in committed["candidates"]:
            assert compare.compare(committed, committed, regression=0.1).regressions == []
        else:
            with pytest.raises(InputError, match="without the baseline"):
                compare.compare(committed, committed, regression=0.1)
        assert page.render(committed).startswith("<!DOCTYPE html>")


def test_a_report_of_loadgen_is_refused(tmp_path, pair):
    report_file.write(pair[0] | {"schema_version": 6, "driver": "mlcommons-loadgen 6.0"}, tmp_path / "old.json")
    with pytest.raises(InputError, match=r"old\.json: driver: a report of MLPerf's LoadGen cannot be read any more;"):
        report_file.load(tmp_path / "old.json")


@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, -math.inf, True, None, "0.1", [], 10**400, 1e-300])
def test_a_time_that_is_no_positive_number_is_named(tmp_path, pair, value):
    pair[0]["candidates"]["eager"]["offline"]["seconds"][7] = value
    (tmp_path / "old.json").write_text(json.dumps(pair[0]))
    with pytest.raises(
        InputError, match=r"old\.json: candidates\.eager\.offline\.seconds: .* is not allowed, only positive numbers"
    ):
        report_file.load(tmp_path / "old.json")


def test_no_times_and_rounds_that_do_not_pair_are_named(tmp_path, pair):
    for seconds, message in (([], "an empty list is not allowed"), ([0.1] * 29, "29 rounds, but the baseline has 30")):
        document = copy.deepcopy(pair[0])
        document["candidates"]["eager"]["offline"]["seconds"] = seconds
        report_file.write(document, tmp_path / "old.json")
        with pytest.raises(InputError, match=rf"old\.json: candidates\.eager\.offline\.seconds: {message}"):
            report_file.load(tmp_path / "old.json")
