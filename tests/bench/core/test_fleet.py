"""The simulated fleet against queueing theory, and against what it must be in the limits."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from sprfast.bench.core import fleet
from sprfast.bench.core.fleet import Assumptions, Service
from sprfast.errors import InputError
from support import ROOT

RESULTS = ROOT / "bench" / "results"
ONE = Service(fixed=0.0, each=0.01, least=0.01, batch=1)  # 10 ms an image, one at a time
NEAR = Assumptions(image_kib=0.0, latency=0.0, queue=1_000_000, images=100_000)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_engine_waits_as_pollaczek_and_khinchine_say(load):
    reached = np.cumsum(np.random.default_rng(1).exponential(0.01 / load, 200_000))
    answered, calls, busy = fleet._serve(reached, ONE, 1, 1_000_000)
    wait = (answered - reached - 0.01)[20_000:].mean()
    assert wait == pytest.approx(load * 0.01 / (2 * (1 - load)), rel=0.06)
    assert calls == 200_000
    assert busy == pytest.approx(2000.0)


def test_an_overloaded_engine_answers_at_its_rate_and_refuses_the_rest():
    row = fleet.simulate(ONE, 1, dataclasses.replace(NEAR, load=2.0, queue=10))
    assert row["answered"] == pytest.approx(100.0, rel=0.01)
    assert row["refused"] == pytest.approx(0.5, abs=0.01)
    assert row["busy"] == pytest.approx(1.0, abs=0.001)
    assert row["p99_ms"] == pytest.approx(110.0, abs=1.0)  # ten that wait, and itself


def test_batches_form_under_load_and_engines_do_more():
    service = Service(fixed=0.01, each=0.001, least=0.011, batch=16)
    idle, loaded = (fleet.simulate(service, 1, dataclasses.replace(NEAR, load=load)) for load in (0.05, 0.9))
    assert idle["mean_batch"] < 1.6
    assert idle["p50_ms"] < 25
    assert loaded["mean_batch"] > 7
    assert loaded["answered"] == pytest.approx(0.9 * service.rate, rel=0.02)


def test_engines_of_a_host_share_its_arrivals_and_wait_less_than_alone():
    alone, together = (fleet.simulate(ONE, engines, dataclasses.replace(NEAR, load=0.8)) for engines in (1, 8))
    assert together["answered"] == pytest.approx(8 * alone["answered"], rel=0.03)
    assert together["p99_ms"] < 0.5 * alone["p99_ms"]


def test_a_link_carries_no_more_than_it_can():
    slow = Assumptions(load=0.9, image_kib=1000.0, link_gbit=1.0, latency=0.002, images=20_000, host=100)
    row = fleet.simulate(ONE, 4, slow)  # 360 images/s wanted, 122 go through
    assert row["answered"] == pytest.approx(1e9 / (1000 * 8192), rel=0.01)
    wide = fleet.simulate(ONE, 4, dataclasses.replace(slow, host=1))  # a link for each engine
    assert wide["answered"] == pytest.approx(360.0, rel=0.05)


def test_every_image_is_answered_or_refused_once_and_the_seed_decides():
    reached = np.cumsum(np.random.default_rng(2).exponential(0.001, 20_000))
    answered, calls, busy = fleet._serve(reached, ONE, 5, 3)
    assert calls == np.count_nonzero(~np.isnan(answered))
    assert busy == pytest.approx(0.01 * calls)
    assert np.all(answered[~np.isnan(answered)] >= reached[~np.isnan(answered)] + 0.01 - 1e-9)
    assert 0.4 < np.isnan(answered).mean() < 0.6
    assert fleet.simulate(ONE, 2, NEAR) == fleet.simulate(ONE, 2, NEAR)
    assert fleet.simulate(ONE, 2, NEAR) != fleet.simulate(ONE, 2, dataclasses.replace(NEAR, seed=1))


def test_times_of_a_call_are_a_line_through_the_measured_ones():
    service = Service.fitted({1: 0.011, 4: 0.014, 16: 0.026})
    assert (service.fixed, service.each, service.batch) == pytest.approx((0.01, 0.001, 16))
    assert service.seconds(8) == pytest.approx(0.018)
    through_zero = Service.fitted({1: 0.9, 2: 2.1})
    assert through_zero.fixed == 0.0
    with pytest.raises(InputError, match="two batch sizes are needed, the report has 1"):
        Service.fitted({1: 0.1})


@pytest.mark.parametrize(
    ("name", "candidate", "rate"),
    [("xeon-2core-192.json", "cpu", 5.8), ("h100-192/waterfall.json", "cuda_graph_bfloat16", 2551.0)],
)
def test_the_measured_rate_comes_out_of_a_report(name, candidate, rate):
    service = Service.fitted(fleet.read(RESULTS / name, candidate))
    assert service.rate == pytest.approx(rate, rel=0.08)


def test_the_models_own_draws_are_those_of_the_level_with_the_most(tmp_path):
    report = json.loads((RESULTS / "xeon-2core-192.json").read_text())
    report["model"]["schedule"]["levels"] *= 2  # two levels of three draws
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    assert fleet.read(path, "cpu") == fleet.read(RESULTS / "xeon-2core-192.json", "cpu")


def test_the_command_prints_what_is_assumed(run, monkeypatch):
    report = RESULTS / "xeon-2core-192.json"
    monkeypatch.setattr(fleet, "Assumptions", functools.partial(fleet.Assumptions, images=1000))
    code, out, _ = run("bench", "fleet", report, "--engines", "1,4", "--load", "0.5")
    assert code == 0
    # a long path wraps the line
    assert "load 0.5; 100 KiB an image over 25 Gbit/s for up to 8 engines" in " ".join(out.split())
    document = json.loads(run("bench", "fleet", report, "--engines", "2", "--json")[1])
    assert document["simulated"]
    assert [row["engines"] for row in document["fleets"]] == [2]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--candidate", "nosuch"), "has no times of nosuch"),
        (("--engines", "1,many"), "--engines '1,many': write whole numbers"),
        (("--engines", "0"), "0 engines are not allowed"),
        (("--load", "0"), "load: 0.0 is not allowed"),
    ],
)
def test_bad_options_are_one_line(run, options, why):
    code, out, err = run("bench", "fleet", RESULTS / "xeon-2core-192.json", *options)
    assert (code, out) == (2, "")
    assert why in err
    assert len(err.splitlines()) == 1


def waterfall(microseconds):
    entry = {"candidates": {"cpu": {"us_per_image": {"median": microseconds}}}}
    return json.dumps({"batches": [{"images": 1, **entry}, {"images": 8, **entry}]})


BAD_TIMES = [waterfall(microseconds) for microseconds in (0, -3.0, float("nan"), float("inf"), "3")]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"batches": [1]}', '{"model": {}, "settings": 3}', "[" * 100_000, *BAD_TIMES]
)
def test_a_file_that_is_no_report_is_named(run, tmp_path, content):
    (tmp_path / "other.json").write_text(content)
    code, out, err = run("bench", "fleet", tmp_path / "other.json")
    assert (code, out) == (2, "")
    assert "other.json" in err
    assert len(err.splitlines()) == 1
