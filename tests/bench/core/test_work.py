"""What is timed: network only, tensor to map, file to verdict."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch

from sprfast.bench.core import cases, peers, work
from sprfast.config import Level, Preprocessing, Schedule
from sprfast.data import images
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.method import scoring, sde, unet
from sprfast.method.noise import noise_bank
from sprfast.method.threshold import Verdict, manual
from support.scoring_mode_cases import with_mode

CPU = torch.device("cpu")
TOLERANCE = 1e-5


@pytest.fixture
def model(small_model):
    schedule = Schedule((Level(1e-3, 2, 1.0), Level(1e-2, 1, 3.0)))
    return with_mode(small_model, schedule=schedule, threshold=manual(1e9))


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(0)
    found = [tmp_path / f"{index}.png" for index in range(5)]
    for path in found:
        PIL.Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return found


def files(model, paths, count):
    return work.file_images(paths, count, model.preprocessing)


@pytest.mark.parametrize("candidate", peers.CANDIDATES, ids=lambda candidate: candidate.name)
@pytest.mark.parametrize("kind", work.WORKS.values(), ids=work.WORKS)
def test_every_candidate_does_every_work_like_the_definition(model, paths, kind, candidate):
    doing = kind(model, files(model, paths, 3), CPU)
    answer = doing.build(candidate)
    for indices in ([1], [0, 2], range(3)):
        found = work.parity(doing.results(answer(doing.take(indices))), doing.truth(indices), TOLERANCE)
        assert found["passed"], found


def test_the_truth_is_the_definition_in_float64(model, paths):
    given = files(model, paths, 2)
    doing = work.Work(model, given, CPU)
    network = unet.from_weights(model.network, {name: value.double() for name, value in model.weights.items()})
    noise = [z.double() for z in noise_bank(model.schedule, *given.pixels.shape[2:], model.noise_seed)]
    with torch.no_grad():
        errors = scoring.error_map(network, given.pixels.double(), model.schedule, noise)
    truth = doing.truth([0, 1])
    torch.testing.assert_close(truth["error_map"], errors, rtol=1e-12, atol=0.0)
    resized = torch.nn.functional.interpolate(errors, (256, 256), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.avg_pool2d(resized, 31, stride=1, padding=15)
    torch.testing.assert_close(truth["anomaly_map"], expected, rtol=1e-6, atol=0.0)  # the matrices are float32


def test_the_network_is_given_perturbed_images_and_its_own_times(model, paths):
    given = files(model, paths, 2)
    doing = work.NetworkOnly(model, given, CPU)
    assert peers.draw_times(model.schedule).tolist() == pytest.approx([1e-3, 1e-3, 1e-2])
    taken = doing.take([1])
    assert taken.shape == (1, 3, *given.pixels.shape[1:])
    z = (taken[0, 2] - given.pixels[1]) / sde.std(1e-2)
    network = unet.from_weights(model.network, model.weights)
    with torch.no_grad():
        expected = network.scaled_score(given.pixels[1:] + sde.std(1e-2) * z, torch.tensor([1e-2]))
    assert work.parity({"f": doing.truth([1])["scaled_score"][0, 2:]}, {"f": expected}, TOLERANCE)["passed"]


def test_a_candidate_without_a_network_of_its_own_says_why(model):
    fused = dataclasses.replace(peers.CANDIDATES[2], name="fused", network=None)
    document = cases.run(
        model, cases.BenchOptions(batch=1, seconds=0.01, device="cpu", timed="network"), candidates=[fused]
    )
    assert document["work"] == "network"
    assert document["candidates"]["fused"]["status"] == "unavailable"
    assert "network alone cannot be timed" in document["candidates"]["fused"]["reason"]


def test_from_file_to_verdict_is_what_the_engine_does(model, paths):
    doing = work.FileToVerdict(model, files(model, paths, 3), CPU)
    results = doing.build(peers.CANDIDATES[2])(doing.take([0, 1, 2]))
    expected = Engine(model, "eager", "cpu").predict(list(doing.given.paths))
    assert [result.pred_score for result in results] == [result.pred_score for result in expected]
    assert [result.verdict for result in results] == [Verdict.PASS] * 3


def test_a_file_that_is_gone_is_no_speed(model, paths):
    doing = work.FileToVerdict(model, files(model, paths[:2], 2), CPU)
    answer = doing.build(peers.CANDIDATES[2])
    paths[1].unlink()
    with pytest.raises(InputError, match=r"could not be scored.*1\.png"):
        doing.results(answer(doing.take([0, 1])))


def test_file_to_verdict_needs_files(model):
    with pytest.raises(InputError, match="--images"):
        work.FileToVerdict(model, work.random_images(2, 32), CPU)


def test_files_are_spread_over_the_folder_or_repeated(model, paths):
    assert files(model, paths, 2).paths == (paths[0], paths[2])
    repeated = files(model, paths[:2], 3)
    assert repeated.paths == (paths[0], paths[1], paths[0])
    assert torch.equal(repeated.pixels[0], repeated.pixels[2])
    assert repeated.description.startswith("2 files")
    expected = images.load_image(paths[1], model.preprocessing).pixels
    assert np.array_equal(repeated.pixels[1].numpy(), expected)


def test_files_of_two_sizes_are_refused_by_name(paths):
    PIL.Image.new("RGB", (60, 40)).save(paths[3])
    with pytest.raises(InputError, match=r"0\.png is \(32, 32\) and .*3\.png is \(32, 48\)"):
        work.file_images(paths, 5, Preprocessing(size=32))


def test_random_images_are_the_same_every_time():
    first, second = (work.random_images(2, 32) for _ in range(2))
    assert torch.equal(first.pixels, second.pixels)
    assert first.pixels.shape == (2, 3, 32, 32)
    assert first.pixels.min() >= -1
    assert first.pixels.max() <= 1


def test_consecutive_samples_are_taken_without_a_copy(model):
    doing = work.Work(model, work.random_images(3, 32), CPU)
    assert doing.take(range(3)).data_ptr() == doing.take([0]).data_ptr()
    assert torch.equal(doing.take([2, 0]), torch.stack([doing.take([2])[0], doing.take([0])[0]]))


@pytest.mark.parametrize("timed", work.WORKS)
def test_a_report_says_what_was_timed(model, paths, timed):
    options = cases.BenchOptions(batch=2, size=16, seconds=0.01, device="cpu", timed=timed, paths=paths)
    document = cases.run(model, options, candidates=peers.CANDIDATES[2:])
    assert (document["work"], document["timed"]) == (timed, work.WORKS[timed].timed)
    assert document["input"]["images"].startswith("2 files")
    entry = document["candidates"]["eager"]
    assert entry["status"] == "measured"
    assert entry["audits"]["outputs"]["passed"]
    assert entry["audits"]["outputs"]["compared"] >= 3
