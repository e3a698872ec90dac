import json
import math
import re

import numpy as np
import pytest
import scipy.stats

from sprfast.bench.core import cases, compare, peers, report_file
from sprfast.errors import InputError
from support.bench_reports import KEYS, NAMES, SPEEDS, change, printed, synthetic

SLOWER = 1 / 0.85  # in time: 15 % less speed


@pytest.fixture
def pair():
    return synthetic(0), synthetic(1)


def drift(seed):
    """Drift of the whole machine between two runs: within 20 % either way."""
    return np.random.default_rng((seed, 99)).uniform(0.8, 1.2)


def rendered(comparison):
    return printed(comparison.table())


def give(document, published, eager):
    """These times in Offline, and no third candidate."""
    del document["candidates"]["cuda_graph_bfloat16"]
    document["candidates"]["published"]["offline"]["seconds"] = published
    document["candidates"]["eager"]["offline"]["seconds"] = eager


def test_every_candidate_has_a_row_in_every_scenario(pair):
    found = compare.compare(*pair, regression=0.1)
    assert [(row.candidate, row.scenario) for row in found.rows] == [(name, key) for name in SPEEDS for key in KEYS]


@pytest.mark.parametrize("rounds", [2, 30])
def test_equal_candidates_on_a_drifting_machine_are_no_regression(rounds):
    for seed in range(50):
        old, new = synthetic(2 * seed, rounds), synthetic(2 * seed + 1, rounds, machine=drift(seed))
        assert compare.compare(old, new, regression=0.1).regressions == []


def test_a_candidate_15_percent_slower_is_caught_on_a_drifting_machine():
    rows = 0
    for seed in range(50):
        old, new = synthetic(2 * seed), synthetic(2 * seed + 1, machine=drift(seed), slowdown={"eager": SLOWER})
        found = compare.compare(old, new, regression=0.1).regressions
        assert {sentence.partition(",")[0] for sentence in found} == {"eager"}
        rows += len(found)
    assert rows >= 0.95 * 50 * len(KEYS)  # a row of 30 rounds alone misses one in a hundred


def test_without_the_baseline_in_both_nothing_is_told(pair):
    """The drift of a machine would be taken for a regression: the tests above rest on the pairs."""
    old, new = pair[0], synthetic(1, machine=1.2)
    assert compare.compare(old, new, regression=0.1).regressions == []
    for key in KEYS:
        old["candidates"]["published"][key] = None
    with pytest.raises(InputError, match=r"published: was not measured in both .* --candidates published,eager"):
        compare.compare(old, new, regression=0.1)
    for document in (old, new):
        document["candidates"].pop("published")
    with pytest.raises(InputError, match="published: was not measured in both"):
        compare.compare(old, new, regression=0.1)


def test_a_scenario_without_the_baseline_cannot_be_told_and_does_not_pass(pair):
    old, new = pair[0], synthetic(1, machine=1.2)
    old["candidates"]["published"]["offline"] = None
    found = compare.compare(old, new, regression=0.1)
    assert found.regressions == ["Offline: cannot be told, the baseline was not measured in both reports."]
    assert {row.basis for row in found.rows if row.scenario == "offline"} == {"absolute"}
    assert "REGRESSION" not in rendered(found)
    assert "absolute" in rendered(found)


def test_a_faster_candidate_is_not_a_regression(pair):
    found = compare.compare(pair[0], synthetic(1, slowdown={"eager": 0.5}), regression=0.0)
    row = next(row for row in found.rows if row.candidate == "eager")
    assert 1.9 < row.low < row.speed < row.high < 2.1


def test_speed_is_the_ratio_of_the_medians_of_the_paired_ratios(pair):
    old, new = pair
    give(old, [2.0, 30.0, 4.0, 6.0, 8.0], [1.0, 10.0, 1.0, 3.0, 4.0])
    give(new, [3.0] * 6, [2.0] * 6)
    row = next(
        row
        for row in compare.compare(old, new, regression=0.1).rows
        if (row.candidate, row.scenario) == ("eager", "offline")
    )
    assert row.speed == pytest.approx(1.5 / 2.0)  # old ratios 2, 3, 4, 2, 2
    assert (row.low, row.high) == pytest.approx((1.5 / 4.0, 1.5 / 2.0))
    assert (row.basis, row.interval, row.rounds_old, row.rounds_new) == ("paired", "bootstrap", 5, 6)


def test_few_rounds_have_the_interval_of_a_t_test_on_the_logarithms(pair):
    old, new = pair
    give(old, [2.0, 3.0], [1.0, 1.0])
    give(new, [8.0] * 9, [4.0, 2.0] + [3.0] * 7)
    found = compare.compare(old, new, regression=0.1)
    row = next(row for row in found.rows if (row.candidate, row.scenario) == ("eager", "offline"))
    logs = np.log([2.0, 3.0]), np.log([2.0, 4.0] + [8 / 3] * 7)
    expected = scipy.stats.ttest_ind(logs[1], logs[0]).confidence_interval(0.95)
    assert (row.interval, row.rounds_old, row.rounds_new) == ("student", 2, 9)
    assert (row.low, row.high) == pytest.approx(np.exp(expected))
    assert row.speed == pytest.approx(np.exp(logs[1].mean() - logs[0].mean()))
    assert f"({row.low:.3f}-{row.high:.3f})" in rendered(found)


def test_few_rounds_that_are_clearly_slower_are_a_regression():
    found = compare.compare(synthetic(0, 3), synthetic(1, 3, slowdown={"eager": 2.0}), regression=0.1)
    assert len(found.regressions) == len(KEYS)
    assert "3 and 3 rounds" in found.regressions[0]


def test_one_round_each_has_a_speed_but_no_interval_and_no_verdict():
    found = compare.compare(synthetic(0, 1), synthetic(1, 1, slowdown={"eager": 2.0}), regression=0.1)
    assert {(row.low, row.high) for row in found.rows} == {(None, None)}
    assert found.regressions == []
    assert "(unknown)" in rendered(found)


@pytest.mark.parametrize("n", [5, 6, 31, 200])
def test_resampled_medians_are_distributed_like_medians_of_resamples(n, monkeypatch):
    monkeypatch.setattr(compare, "RESAMPLES", 50_000)
    samples = np.random.default_rng(n).permutation(n) / n
    drawn = compare._resampled_medians(samples, np.random.default_rng(0))
    plain = np.median(np.random.default_rng(1).choice(samples, (50_000, n)), axis=1)
    points = np.arange(0, 1, 0.5 / n)
    # 3.5 standard deviations
    assert max(abs(np.mean(drawn <= point) - np.mean(plain <= point)) for point in points) < 0.01


@pytest.mark.parametrize("rounds", [(2, 2), (1, 30), (4, 3), (5, 5), (30, 30)])
def test_an_interval_holds_the_truth_at_least_about_as_often_as_it_says(rounds):
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        before, after = (random.lognormal(0, 0.04, n) for n in rounds)
        _, low, high = compare._student(before, after) if min(rounds) < 5 else compare._bootstrap(before, after, random)
        held += low <= 1.0 <= high
    assert held / 400 > 0.93


def test_a_hundred_thousand_rounds_take_no_memory_of_rounds_times_resamples():
    found = compare.compare(synthetic(0, 100_000), synthetic(1, 100_000), regression=0.1)
    assert all(row.high - row.low < 0.003 for row in found.rows)


def test_the_seed_decides_the_interval(pair):
    first, again, other = (compare.compare(*pair, regression=0.1, seed=seed).rows for seed in (1, 1, 2))
    assert first == again != other


def test_the_baseline_itself_is_never_slower_only_shown(pair):
    found = compare.compare(pair[0], synthetic(1, machine=3.0), regression=0.1)
    row = next(row for row in found.rows if row.candidate == "published")
    assert (row.basis, row.baseline) == ("absolute", True)
    assert row.speed == pytest.approx(1 / 3, rel=0.05)
    assert found.regressions == []


@pytest.mark.parametrize(
    ("which", "path", "value", "expected"),
    [
        ("new", "complete", False, "new report is incomplete"),
        ("old", "complete", False, "old report is incomplete"),
        ("new", "candidates.eager", ..., "eager: measured in the old report, missing"),
        ("new", "candidates.published", ..., "published: measured in the old report, missing"),
        ("new", "candidates.eager.status", "not measured", "eager: measured in the old report, not measured in"),
        ("new", "candidates.eager.offline", None, "eager, Offline: measured in the old report, not in the new one"),
        (
            "new",
            "candidates.eager.parity.batch.passed",
            False,
            r"eager: parity passed .* fails in the new one \(batch\)",
        ),
    ],
)
def test_what_is_lost_is_a_regression(pair, which, path, value, expected):
    change(pair[which == "new"], path, value)
    found = compare.compare(*pair, regression=0.1)
    assert len(found.regressions) == 1
    assert re.search(expected, found.regressions[0])
    assert " ".join(found.regressions[0].split()) in " ".join(rendered(found).split())


def test_parity_that_fails_is_told_once_and_not_again_as_missing_speed(pair):
    entry = pair[1]["candidates"]["eager"]
    entry |= {"status": "failed", **dict.fromkeys(KEYS)}
    entry["parity"]["one_image"]["passed"] = entry["parity"]["batch"]["passed"] = False
    (sentence,) = compare.compare(*pair, regression=0.1).regressions
    assert "(one_image, batch)" in sentence


def test_what_failed_before_may_fail_again(pair):
    for entry in (document["candidates"]["eager"] for document in pair):
        entry |= {"status": "failed", **dict.fromkeys(KEYS)}
        entry["parity"]["batch"]["passed"] = False
    found = compare.compare(*pair, regression=0.1)
    assert found.regressions == []
    assert "eager" not in {row.candidate for row in found.rows}


def test_other_circumstances_are_noted_and_not_refused(pair):
    old, new = pair
    new["environment"] |= {"torch": "2.14.0", "devices": {"cpu": {"name": "another CPU"}}, "load_average": 7.0}
    new["model"]["sha256"] = "cd" * 32
    new["candidates"]["eager"]["tolerance"] = 1e-2
    new["candidates"]["onnxruntime"] = new["candidates"]["eager"]
    found = compare.compare(old, new, regression=0.1)
    assert found.differences == [
        "torch: 2.13.0 -> 2.14.0",
        "devices.cpu.name: a CPU -> another CPU",
        "model sha256: abababababab -> cdcdcdcdcdcd",
        "eager, tolerance: 0.0001 -> 0.01",
        "onnxruntime: only in the new report",
    ]
    assert found.regressions == []
    text = rendered(found)
    assert "2.14.0" in text
    assert "load 7.0" in text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("input.height", 256, "size 192x192 and 256x192"),
        ("input.samples", 8, "batch 16 and 8"),
        ("model.schedule.levels", [{"t": 1e-3, "draws": 2, "weight": 1.0}], "schedule .*'draws': 3.* and .*'draws': 2"),
        ("model.schedule.noise", "none", "schedule"),
        ("model.network.base_width", 32, "network .*64.* and .*32"),
        ("timed", "file to verdict", "timed 'tensor to map' and 'file to verdict'"),
        ("baseline", "eager", "baseline published and eager"),
    ],
)
def test_reports_of_other_work_are_refused(pair, path, value, message):
    change(pair[1], path, value)
    with pytest.raises(InputError, match=message):
        compare.compare(*pair, regression=0.1)


@pytest.mark.parametrize("regression", [-0.1, 1.0, math.nan, math.inf])
def test_an_allowed_regression_out_of_range_is_refused(pair, regression):
    with pytest.raises(InputError, match="regression: "):
        compare.compare(*pair, regression=regression)


def test_nothing_in_common_is_refused_and_not_passed(pair):
    for entry in pair[0]["candidates"].values():
        entry |= {"status": "failed", **dict.fromkeys(KEYS)}
    with pytest.raises(InputError, match="no candidate was measured in both"):
        compare.compare(*pair, regression=0.1)


def test_json_has_no_nan_and_comes_back_the_same(pair):
    few = synthetic(0, 1), synthetic(1, 2)
    give(few[1], [1e11, 1e-11], [1e-11, 1e11])
    json.dumps(compare.compare(*few, regression=0.1).to_json(), allow_nan=False)
    document = compare.compare(*pair, regression=0.1).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (document["regression"], document["confidence"], document["seed"]) == (0.1, 0.95, 0)
    assert len(document["rows"]) == len(SPEEDS) * len(KEYS)


def test_table_fits_a_terminal_and_shows_every_figure():
    found = compare.compare(
        synthetic(0, 12345), synthetic(1, 12345, slowdown={"cuda_graph_bfloat16": SLOWER}), regression=0.1
    )
    text = rendered(found)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for row in found.rows:
        assert f"{row.candidate} {NAMES[row.scenario]} {row.speed:.3f}" in " ".join(text.split())
        assert f"{row.low:.3f}-{row.high:.3f}" in text
    assert text.count("REGRESSION") == len(KEYS)
    assert "12345/12345" in text
    assert " ".join(found.regressions[0].split()) in " ".join(text.split())


def test_table_says_when_there_is_no_regression_and_takes_no_name_for_markup(pair):
    for document in pair:
        document["candidates"]["[/eager]"] = document["candidates"]["eager"]
    pair[1]["environment"]["torch"] = "[/torch]"
    text = rendered(compare.compare(*pair, regression=0.1))
    assert "No regression beyond 0.1." in text
    assert "[/eager]" in text
    assert "[/torch]" in text


@pytest.mark.clock
def test_two_runs_of_the_same_code_are_no_regression(small_model, tmp_path):
    for name in ("old.json", "new.json"):
        document = cases.run(
            small_model, cases.BenchOptions(batch=2, seconds=0.5, device="cpu"), candidates=peers.CANDIDATES[::2]
        )
        report_file.write(document, tmp_path / name)
    found = compare.compare(
        report_file.load(tmp_path / "old.json"), report_file.load(tmp_path / "new.json"), regression=0.3
    )
    assert found.regressions == []
    assert len(found.rows) == 2 * len(KEYS)
