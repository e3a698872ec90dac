"""What only a CUDA device can show: run with `pytest -m gpu`."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sprfast.backends import cuda_graph
from sprfast.backends import registry as backends
from sprfast.backends.sessions.session import CAPTURED, split
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.engine.engine import Engine
from sprfast.evaluation import parity
from sprfast.formats import export_metadata as contract
from sprfast.method import scoring, unet
from sprfast.method.noise import noise_bank
from sprfast.method.scoring_mode import ScoringMode

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
PRECISIONS = ("float32", "float16", "bfloat16")
FUSED = ("triton", "cuda_graph")
ON_CUDA = ("eager", *FUSED)


@pytest.fixture(scope="module")
def model(golden_document):
    """The published network with the golden weights, for 64x64 images."""
    return parity.Model(
        NetworkConfig(),
        ScoringMode(Schedule((Level(1e-3, 3),))),
        Preprocessing(size=64),
        parity.golden_weights(golden_document),
    )


def images(count, height=64, width=64, seed=0):
    return (torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1).cuda()


def bank(model, height=64, width=64):
    return [z.cuda() for z in noise_bank(model.schedule, height, width, 0)]


def relative_rms(got, expected):
    return float((got.double().cpu() - expected.double().cpu()).norm() / expected.double().cpu().norm())


@pytest.mark.parametrize("name", ON_CUDA)
def test_golden_outputs(name, golden_folder):
    report = parity.check_golden(golden_folder, name, "cuda")
    assert report.passed, [row for row in report.rows if not row.passed]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FUSED)
def test_real_size_against_the_definition(name, precision, model):
    at_192 = dataclasses.replace(model, preprocessing=Preprocessing())
    x, noise = images(2, 192, 192), bank(model, 192, 192)
    errors, anomaly_maps = backends.create(name, at_192, "cuda", precision).maps(x, noise)
    network = unet.from_weights(model.network, model.weights)
    with torch.inference_mode():
        expected = scoring.error_map(network, x.cpu(), model.schedule, [z.cpu() for z in noise])
    limit = 1e-5 if precision == "float32" else contract.TOLERANCE[precision]
    assert relative_rms(errors, expected) <= limit
    assert relative_rms(anomaly_maps, scoring.anomaly_map(expected)) <= limit


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_replay_equals_the_launches_bit_for_bit(model, precision, count):
    backend = cuda_graph.CudaGraphBackend(model, torch.device("cuda", 0), precision)
    x, noise = images(count), bank(model)
    errors, anomaly_maps = backend.maps(x, noise)
    (_, bucket), network = split(count, CAPTURED)[0], backend._network
    padded = torch.cat([x, images(bucket - count, seed=9)]) if bucket > count else x
    with torch.inference_mode():
        launched = network.maps(padded, noise[0])
    assert torch.equal(errors, launched[0][:count])
    assert torch.equal(anomaly_maps, launched[1][:count])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bound_launches_equal_the_networks_own_bit_for_bit(model, precision):
    backend, noise = backends.create("triton", model, "cuda", precision), bank(model)
    for seed in range(3):  # the first call compiles, later ones start what it compiled
        x = images(3, seed=seed)
        expected = backend._launched(backend._network.maps, x, noise[0])
        assert all(map(torch.equal, backend.maps(x, noise), expected))


def test_results_survive_the_next_replay_and_every_later_graph(model):
    backend = backends.create("cuda_graph", model, "cuda", "bfloat16")
    inputs = {count: images(count, seed=count) for count in (32, 16, 8, 4, 2, 1, 7)}
    noise = bank(model)
    first = {count: backend.maps(x, noise) for count, x in inputs.items()}
    kept = {count: [part.clone() for part in maps] for count, maps in first.items()}
    for count, x in reversed(inputs.items()):
        again = backend.maps(x, noise)
        assert all(map(torch.equal, again, kept[count]))
    assert all(torch.equal(a, b) for count in inputs for a, b in zip(first[count], kept[count], strict=True))


def test_an_image_gives_the_same_bits_wherever_it_stands_in_a_bucket(model):
    backend = backends.create("cuda_graph", model, "cuda", "bfloat16")
    x, noise = images(8), bank(model)
    together = backend.maps(x, noise)[0]
    assert torch.equal(backend.maps(x.flip(0), noise)[0], together.flip(0))
    assert torch.equal(backend.maps(x[:5], noise)[0], together[:5])  # three empty places


def test_several_sizes_and_more_graphs_than_are_kept(model, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MAX_GRAPHS", 2)
    backend = backends.create("cuda_graph", model, "cuda")
    sizes = [(64, 64), (48, 80), (50, 71), (33, 96)]
    expected = {}
    for _ in range(2):
        for size in sizes:
            maps = backend.maps(images(2, *size), bank(model, *size))[0]
            assert torch.equal(expected.setdefault(size, maps), maps)
    eager = backends.create("eager", model, "cuda")
    for size in sizes:
        assert relative_rms(expected[size], eager.maps(images(2, *size), bank(model, *size))[0]) <= 1e-5


@pytest.mark.parametrize("name", FUSED)
def test_threads_with_streams_of_their_own_while_graphs_are_captured(name, model, record_property):
    """In float32 cuDNN asks for gigabytes of workspace; where it is refused them, it takes another
    algorithm, with other bits. Then maps are equal but for rounding.
    """
    backend, noise = backends.create(name, model, "cuda"), bank(model)
    inputs = [images(1 + seed % 5, seed=seed) for seed in range(24)]
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["num_ooms"]

    def on_a_stream(x):
        with torch.cuda.stream(torch.cuda.Stream()):
            maps = backend.maps(x, noise)[0].cpu()
            (torch.randn(512, 512, device="cuda") @ torch.randn(512, 512, device="cuda")).sum().item()
        return maps

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(on_a_stream, inputs))
    expected = [backend.maps(x, noise)[0].cpu() for x in inputs]
    refused = torch.cuda.memory_stats()["num_ooms"] - before
    record_property("num_ooms", refused)
    errors = [relative_rms(maps, again) for maps, again in zip(got, expected, strict=True)]
    assert max(errors) <= (1e-5 if refused else 0), f"{refused} allocations were refused"


def test_a_smoothing_matrix_that_is_dropped_stays_while_another_stream_reads_it(model):
    device, stream = torch.device("cuda", torch.cuda.current_device()), torch.cuda.Stream()
    expected = scoring.smoothing_matrix(192, device).cpu()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles: what reads the matrix comes much later
        read = scoring.smoothing_matrix(192, device).clone()
    scoring._kept_matrix.cache_clear()
    for _ in range(4):  # takes the memory of the matrix, were it free
        torch.full_like(read, torch.nan)
    torch.cuda.synchronize()
    assert torch.equal(read.cpu(), expected)


def test_global_tf32_flags_change_nothing(model):
    x, noise = images(2), bank(model)
    for name in ON_CUDA:
        backend = backends.create(name, model, "cuda")
        expected = backend.maps(x, noise)
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        try:
            assert relative_rms(backend.maps(x, noise)[0], expected[0]) <= 1e-6
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", ON_CUDA)
def test_inputs_copied_ahead_from_several_threads_score_as_in_one_call(name, model):
    engine = Engine(model, name, "cuda")
    pictures = [image.cpu() for image in images(12)]
    expected = [result.pred_score for result in engine.predict(pictures)]
    assert engine.self_test() <= contract.TOLERANCE["float32"]
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(engine.prepare, pictures))
    assert [result.pred_score for result in engine.score(prepared)] == pytest.approx(expected, rel=1e-5)
