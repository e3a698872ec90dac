"""The command `bench` over every candidate that can run here."""

import json

import pytest


@pytest.mark.clock
def test_bench_writes_the_report_it_prints(run, model_path, tmp_path):
    report = tmp_path / "report.json"
    code, out, _ = run("bench", model_path, "--batch", "2", "--seconds", "1", "-o", report, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(report.read_text())
