import functools
import json
import math
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from sprfast.bench.core import hardware, peers, timing
from sprfast.bench.gpu import calls, operators, passes, roofline, waterfall
from sprfast.bench.gpu.truth import Truths, pictures
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch, reference, trials
from sprfast.method.noise import noise_bank
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.unet import ScoreUNet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    config = NetworkConfig(32, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {name: value.detach() for name, value in ScoreUNet(config).state_dict().items()}
    return Model(config, ScoringMode(Schedule((Level(1e-3, 2),))), Preprocessing(size=16), weights)


def plain(model, noise, device, factor=1.0):
    maps = peers.plain(model, noise, device)
    return lambda x: tuple(factor * each for each in maps(x))


def test_flops_of_a_forward():
    assert [round(hardware.flops(NetworkConfig(), size, size) / 1e9, 1) for size in (192, 256)] == [45.0, 80.0]


def test_recorded_calls_are_those_of_the_published_network():
    recorded = calls.recorded(
        Model(NetworkConfig(), ScoringMode(), Preprocessing(), weights_of(NetworkConfig())), 16, 192, 192, "bfloat16"
    )
    names = [call.operator for call in recorded]
    assert {name: names.count(name) for name in kernels.__all__} == {
        "noise_conv3x3": 1,
        "perturb_conv3x3": 1,
        "group_norm_affine": 14,
        "norm_swish": 0,
        "norm_swish_pool": 0,
        "norm_swish_head": 0,
        "group_norm_swish": 3,
        "affine_swish": 6,
        "affine_swish_pool": 4,
        "affine_swish_up2": 4,
        "affine_swish_head": 1,
        "anomaly_map": 1,
    }
    largest = next(call for call in recorded if call.operator == "affine_swish")
    feature_map = 48 * 64 * 192 * 192
    assert largest.bytes == 2 * 2 * feature_map + 4 * 48 * 2 * 64  # bfloat16 in and out, float32 affine
    assert sum(len(each.calls) for each in passes.distinct(recorded)) < len(recorded)


def weights_of(config):
    with torch.random.fork_rng():
        return {name: value.detach() for name, value in ScoreUNet(config).state_dict().items()}


def test_fresh_arguments_have_the_recorded_layout_and_unwritten_outputs(model):
    recorded = calls.recorded(model, 100, 32, 32, "float32")  # too many programs for one launch a norm
    call = next(each for each in recorded if each.operator == "affine_swish_pool")
    given = call.fresh(CPU, seed=1)
    for name, pattern in call.arguments.items():
        assert (given[name].shape, given[name].stride(), given[name].dtype) == (
            pattern.shape,
            pattern.stride(),
            pattern.dtype,
        )
        assert given[name].isnan().all() if name in ("out", "pooled") else given[name].isfinite().all()
    assert torch.equal(given["raw"], call.fresh(CPU, seed=1)["raw"])
    assert not torch.equal(given["raw"], call.fresh(CPU, seed=2)["raw"])


@pytest.mark.parametrize("size", [(48, 48), (50, 70)])
def test_the_plain_way_of_every_pass_is_what_our_operators_compute(model, size):
    for each in passes.distinct(calls.recorded(model, 2, *size, "float32")):
        given = each.inputs(CPU, seed=3)
        plain_arguments = each.plain_arguments(given)
        with torch.inference_mode():
            got = each.plain(each.plain_function, *plain_arguments)
            expected = each.ours(reference, *[trials.widened(arguments) for arguments in given])
        assert list(got) == list(expected)
        for name, truth in expected.items():
            error = (got[name].double() - truth).norm() / truth.norm()
            assert error < 1e-5, (each.name, name)


def test_a_wrong_operator_has_no_speed(model):
    wrong = SimpleNamespace(**{name: getattr(reference, name) for name in kernels.__all__})
    wrong.affine_swish = lambda raw, affine, out: out.copy_(1.001 * reference._activation(raw, affine))
    wrong.affine_swish_up2 = lambda *arguments: None  # leaves NaN

    def refuse(*arguments):
        raise launch.UnsupportedError("for the test\nsecond line")

    wrong.norm_swish_head = refuse
    report = operators.measure(model, CPU, 1, 80, 80, "float32", operators=wrong, repeats=1)
    json.dumps(report, allow_nan=False)
    for row in report["operators"]:
        broken = row["operator"] in ("affine_swish", "affine_swish_up2", "norm_swish_head")
        assert row["status"] == ("failed" if broken else "measured"), row
        assert ("time_us" in row) is not broken
    assert any(row.get("reason") == "UnsupportedError: for the test" for row in report["operators"])
    head, *_ = [row for row in report["passes"] if row["pass"] == "norm_swish_head"]
    assert head["ways"]["ours"] == {"status": "unavailable", "reason": "UnsupportedError: for the test"}
    assert head["ways"]["eager"]["status"] == "measured"
    up = [row["ways"]["ours"] for row in report["passes"] if row["pass"] == "norm_swish_up2"]
    assert up
    assert all(
        way["status"] == "failed" and way["parity"][0]["relative_rms"] is None and "time_us" not in way for way in up
    )
    assert len(operators.problems(report)) == sum(
        row["status"] != "measured" for row in (*report["operators"], *report["passes"])
    )


def test_operators_without_time_left_say_so(model):
    report = operators.measure(model, CPU, 1, 16, 16, operators=reference, seconds=-1.0)
    assert {row["reason"] for row in (*report["operators"], *report["passes"])} == {"out of time"}
    assert operators.problems(report)


def test_operators_can_be_measured_without_the_passes(model):
    report = operators.measure(model, CPU, 1, 16, 16, operators=reference, repeats=1, tables=("operators",))
    assert report["passes"] == []
    assert all(row["warm_us"] > 0 for row in report["operators"])


def test_roofline_runs_the_convolutions_that_the_fused_network_runs(model):
    report = roofline.measure(model, CPU, [1, 2], 32, 32, "float32", matrix=16, copied=4096, repeats=2)
    json.dumps(report, allow_nan=False)
    ours, head = 2 * 27 * 32 * 32 * 32, 2 * 32 * 3 * 32 * 32  # the first convolution and the 1x1
    linear = sum(
        2 * value.numel() for name, value in model.weights.items() if "dense" in name or name.startswith("embed")
    )
    for row, images in zip(report["convolutions"], (1, 2), strict=True):
        assert len(row["layers"]) == 17
        work = sum(2 * math.prod(layer["weight"]) * math.prod(layer["input"][2:]) for layer in row["layers"])
        assert abs(work + ours + head - 1e9 * report["gflop_per_forward"]) < linear
        assert {layer["input"][0] for layer in row["layers"]} == {2 * images}  # two draws
        assert row["us_per_image"]["min"] > 0
    draws = model.schedule.draws
    expected = 1e-3 * draws * report["gflop_per_forward"] / report["matmul"]["tflop_per_s"]["median"] * 1e6
    assert report["floor"]["us_per_image"] == pytest.approx(expected)


def test_waterfall_lists_wrong_slow_and_unbuildable_candidates_with_the_reason(model):
    def slow(model, noise, device):
        time.sleep(30)

    def broken(model, noise, device):
        raise RuntimeError("no such library:\nlibfoo.so\nmore")

    named = functools.partial(peers.Candidate, description="for the test")
    candidates = [
        named("published", build=peers.published),
        named("right", build=plain),
        named("wrong", build=functools.partial(plain, factor=1.001)),
        named("wrong_but_16_bit", build=functools.partial(plain, factor=1.001), precision="bfloat16"),
        named("nan", build=functools.partial(plain, factor=math.nan)),
        named("broken", build=broken),
        named("slow", build=slow),
    ]
    saved = []
    report = waterfall.measure(
        model,
        CPU,
        [2, 1],
        16,
        16,
        seconds=6.0,
        minimum=3,
        candidates=candidates,
        save=lambda each: saved.append(str(each)),
    )
    json.dumps(report, allow_nan=False)
    assert [batch["images"] for batch in report["batches"]] == [2, 1]
    for batch in report["batches"]:
        entries = batch["candidates"]
        states = {name: entry["status"] for name, entry in entries.items()}
        assert states == {
            "published": "measured",
            "right": "measured",
            "wrong": "failed",
            "wrong_but_16_bit": "measured",
            "nan": "failed",
            "broken": "unavailable",
            "slow": "unavailable",
        }
        assert entries["broken"]["reason"] == "RuntimeError: no such library: libfoo.so"
        assert entries["slow"]["reason"].startswith("TimeoutError: not done within")
        assert entries["wrong"]["images_per_s"] is None
        assert entries["wrong"]["parity"]["relative_rms"]["error_map"] == pytest.approx(1e-3, rel=1e-2)
        assert entries["nan"]["parity"]["relative_rms"] == {"error_map": None, "score": None}
        right = entries["right"]
        assert right["images_per_s"]["images_per_s"] > 0
        assert right["ratio_to"]["published"]["median"] > 0
        assert right["ratio_to"]["compile_bfloat16"] is None
        assert (right["latency"] is not None) == (batch["images"] == 1)
    assert len(saved) == 2 * (len(candidates) + 1)
    problems = waterfall.problems(report)
    assert len([each for each in problems if each.startswith(("wrong,", "nan,", "broken,", "slow,"))]) == 8
    assert not [each for each in problems if each.startswith(("right", "published"))]


def test_bfloat16_peer_is_the_definition_and_can_be_compiled_whole(model):
    noise = noise_bank(model.schedule, 16, 16, 0)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    truth = plain(model, noise, CPU)(x)
    before = model.sha256
    compiler = functools.partial(torch.compile, backend="aot_eager", dynamic=False, fullgraph=True)
    for maps in (peers.bfloat16(model, noise, CPU), peers.bfloat16(model, noise, CPU, compiler)):
        found = waterfall.parity(maps(x), truth, 3e-2)
        assert found["passed"]
        assert found["relative_rms"]["error_map"] > 1e-4  # bfloat16 it is
    assert model.sha256 == before
    assert waterfall.parity(peers.published_tf32(model, noise, CPU)(x), truth, 1e-5)["passed"]
    for build in (peers.compiled_bfloat16, waterfall.compiled_with_library_convolutions):
        with pytest.raises(BackendError, match="CUDA"):
            build(model, noise, CPU)


def test_waterfall_takes_the_truth_that_is_carried_and_turns_by_the_number_of_images(model):
    noise = noise_bank(model.schedule, 16, 16, model.noise_seed)
    truths = Truths({})
    truths.of(model, pictures(2, 16, 16), noise)
    seen = []

    def counted(model, noise, device):
        maps = plain(model, noise, device)
        return lambda x: seen.append(len(x)) or maps(x)

    report = waterfall.measure(
        model,
        CPU,
        [1, 2],
        16,
        16,
        seconds=4.0,
        minimum=1,
        turn=4,
        truths=truths,
        candidates=[peers.Candidate("published", "for the test", counted)],
    )
    assert [batch["truth"] for batch in report["batches"]] == ["computed here", "carried"]
    # first call, warm call and peak memory are none of the rounds
    assert (seen.count(1) - 2) % 4 == 0
    assert (seen.count(2) - 2) % 2 == 0


def test_spreads_take_turns():
    seen = []

    def clock(name, value):
        return lambda: seen.append(name) or value

    times = timing.spreads({"A": clock("A", 1.0), "B": clock("B", 2.0)}, 3)
    assert seen == ["A", "B"] * 3
    assert times["B"] == {"median": 2.0, "min": 2.0, "max": 2.0}


def test_a_clock_goes_through_all_its_calls():
    seen = []
    clock = timing.captured([lambda index=index: seen.append(index) or time.sleep(0.01) for index in range(3)], CPU)
    assert 0.01 <= clock() < 0.03
    assert seen == [0, 1, 2]


def test_limit_interrupts_and_leaves_other_alarms_as_they_were():
    alarm = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0] > 0

    def swallows_every_exception():
        try:
            time.sleep(5)
        except Exception:
            pytest.fail("the alarm was taken for a fault of the body")

    with pytest.raises(TimeoutError, match=r"not done within 0\.1 s"), timing.limited(0.1):
        swallows_every_exception()
    with timing.limited(5.0):
        pass
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0] > 0) == alarm
