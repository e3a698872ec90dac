import dataclasses
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sprfast.backends import registry as backends
from sprfast.backends import triton as triton_backend
from sprfast.backends.eager import EagerBackend
from sprfast.backends.sessions.session import CAPTURED, split
from sprfast.backends.tensors import parted
from sprfast.config import Level, NetworkConfig, Schedule
from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, InputError
from sprfast.evaluation import parity
from sprfast.formats import export_metadata as contract
from sprfast.kernels.cpu import library
from sprfast.kernels.triton import reference
from sprfast.lowering.fold import fold
from sprfast.method import scoring, unet
from sprfast.method.noise import noise_bank
from support.scoring_mode_cases import WINDOW, field, with_mode

MULTI = Schedule((Level(1e-3, 3), Level(0.05, 2, weight=0.5)))
ANTITHETIC = Schedule((Level(1e-3, 4),), noise="antithetic")
SIGNS = Schedule((Level(5e-4, 1),), noise="signs")
NOISELESS = Schedule((Level(1e-3, 1),), noise="none")
PUBLISHED = Schedule()


INTERPRETED = pytest.param("interpreted", marks=pytest.mark.interpreter)


@pytest.fixture(params=[*backends.NAMES, INTERPRETED])
def name(request, monkeypatch):
    """A backend that can run here.

    Without a CUDA device "triton" has the references in place of its kernels; the same network on
    the kernels in Triton's interpreter is "interpreted".
    """
    chosen = "triton" if request.param == "interpreted" else request.param
    reason = backends.unavailable(chosen)
    if reason:
        pytest.skip(reason)
    if request.param == "interpreted" and torch.cuda.is_available():
        pytest.skip("the kernels run on the CUDA device")
    if request.param == "triton" and not torch.cuda.is_available():
        monkeypatch.setattr(triton_backend, "network_on", on_references)
    return chosen


class OnReferences(triton_backend.FusedUNet):
    """The network on plain torch, which has no launches to bind."""

    def bind(self, x, z, noise):
        return lambda x, z, noise: parted(self.result(x, z, noise), *x.shape[2:])


def on_references(model, device, precision):
    return OnReferences(fold(model), device, triton_backend.STORAGE[precision], operators=reference)


ON_CPU = ("cpu", "onnxruntime")  # what runs there whatever else there is


def create(name, model, **options):
    return backends.create(name, model, "cpu" if name in ON_CPU else None, **options)


def images(count, height, width, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def definition(model, x, noise):
    network = unet.from_weights(model.network, model.weights)
    with torch.inference_mode():
        return scoring.error_map(network, x, model.schedule, noise)


def relative_rms(got, expected):
    return float((got.cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("schedule", "count", "size"),
    [
        pytest.param(PUBLISHED, 1, (32, 32), id="published"),
        pytest.param(PUBLISHED, 3, (16, 16), id="odd-batch"),
        pytest.param(PUBLISHED, 2, (16, 16), id="smallest"),  # 1x1 in the deepest stage
        pytest.param(PUBLISHED, 1, (18, 22), id="odd-size"),  # zero-padded on the way up
        pytest.param(PUBLISHED, 1, (17, 64), id="stretched"),
        pytest.param(NOISELESS, 1, (16, 528), id="strip"),  # whose map is resampled by area
        pytest.param(MULTI, 2, (16, 16), id="two-levels"),
        pytest.param(ANTITHETIC, 1, (16, 32), id="antithetic"),
        pytest.param(SIGNS, 1, (16, 16), id="signs"),
        pytest.param(NOISELESS, 1, (16, 16), id="no-noise"),
    ],
)
def test_backend_equals_the_definition(name, small_model, schedule, count, size):
    model = with_mode(small_model, schedule=schedule)
    x, noise = images(count, *size), noise_bank(schedule, *size, seed=4)
    got, maps = create(name, model).maps(x, noise)
    assert got.shape == (count, 1, *size)
    assert got.dtype == maps.dtype == torch.float32
    expected = definition(model, x, noise)
    assert relative_rms(got, expected) <= 1e-5
    assert relative_rms(maps, scoring.anomaly_map(expected)) <= 1e-5


def test_backend_passes_parity_without_noise_and_with_field_window_and_tiles(name, small_model, pictures):
    model = with_mode(small_model, schedule=NOISELESS, error_field=field(), window=WINDOW, tile=16)
    report = parity.check_images(model, pictures[:2], name, "cpu" if name in ON_CPU else None)
    assert report.passed, report.rows
    assert {row.quantity: row.value for row in report.rows}["pred_score, largest relative error"] <= 1e-5


def test_backend_takes_noise_of_each_image(name, small_model):
    x, noise = images(3, 16, 16), [torch.randn(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))]
    got = create(name, small_model).maps(x, noise)[0]
    assert relative_rms(got, definition(small_model, x, noise)) <= 1e-5


@pytest.mark.usefixtures("bfloat16_on_any_processor")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_backend_in_16_bits_is_within_its_tolerance_or_refuses(name, small_model, precision):
    if (name, precision) in (("eager", "bfloat16"), ("eager", "float16"), ("cpu", "float16")):
        with pytest.raises(BackendError, match=f"{name}.*computes in float32.*, not {precision}"):
            create(name, small_model, precision=precision)
        return
    x, noise = images(2, 16, 16), noise_bank(small_model.schedule, 16, 16, 0)
    backend = create(name, small_model, precision=precision)
    if name == "onnxruntime" and precision == "bfloat16":
        with pytest.raises(BackendError, match="has no bfloat16 convolution on a CPU; use float16 or float32"):
            backend.maps(x, noise)
        return
    errors, anomaly_maps = backend.maps(x, noise)
    assert errors.dtype == anomaly_maps.dtype == torch.float32
    error = relative_rms(errors, definition(small_model, x, noise))
    assert 1e-6 < error <= contract.TOLERANCE[precision]


@pytest.mark.parametrize("window", [None, 1, 12])
def test_backend_smooths_its_error_maps_with_the_window_of_the_mode(name, small_model, window):
    model = with_mode(small_model, window=window)
    errors, anomaly_maps = create(name, model).maps(images(2, 18, 70), noise_bank(model.schedule, 18, 70, 0))
    assert anomaly_maps.shape == (2, 1, 256, 256)
    assert relative_rms(anomaly_maps, scoring.anomaly_map(errors.cpu(), window)) <= 1e-6
    assert (relative_rms(anomaly_maps, scoring.anomaly_map(errors.cpu())) <= 1e-2) == (window is None)


def test_a_nan_in_an_image_is_a_nan_in_its_score_and_in_no_other(name, small_model):
    x, noise = images(3, 16, 16), noise_bank(small_model.schedule, 16, 16, 0)
    backend = create(name, small_model)
    clean = scoring.image_score(backend.maps(x, noise)[1])
    x[1, 0, 5, 5] = torch.nan
    scores = scoring.image_score(backend.maps(x, noise)[1])
    assert scores.isnan().tolist() == [False, True, False]
    assert torch.equal(scores[[0, 2]], clean[[0, 2]])


def test_backend_gives_the_published_numbers(name, golden_folder, golden_document, tmp_path, request):
    if request.node.get_closest_marker("interpreter"):  # a minute for one case
        golden_document = {**golden_document, "cases": {"odd_50x70": golden_document["cases"]["odd_50x70"]}}
        (tmp_path / "golden.json").write_text(json.dumps(golden_document))
        shutil.copy(golden_folder / "odd_50x70.npz", tmp_path)
        golden_folder = tmp_path
    report = parity.check_golden(golden_folder, name, "cpu" if name in ON_CPU else None)
    assert report.passed, [row for row in report.rows if not row.passed]


def test_backend_takes_images_of_any_memory_layout(name, small_model):
    backend, noise = create(name, small_model), noise_bank(small_model.schedule, 16, 32, 0)
    x = images(1, 16, 32)
    expected = backend.maps(x, noise)[0]
    strided = images(1, 16, 64)[..., ::2]
    strided.copy_(x)
    for layout in (
        x.contiguous(memory_format=torch.channels_last),
        strided,
        x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert torch.equal(backend.maps(layout, noise)[0], expected)


def test_backend_writes_neither_images_nor_noise_nor_weights(name, small_model):
    backend, before = create(name, small_model), small_model.sha256
    x, noise = images(2, 16, 16), noise_bank(small_model.schedule, 16, 16, 0)
    copies = x.clone(), noise[0].clone()
    first = backend.maps(x, noise)[0]
    kept = first.clone()
    assert torch.equal(backend.maps(x, noise)[0], first)
    backend.maps(images(2, 16, 16, seed=1), noise)
    assert torch.equal(first, kept)  # a later call must not write into an earlier result
    assert torch.equal(x, copies[0])
    assert torch.equal(noise[0], copies[1])
    assert small_model.sha256 == before


def test_backend_does_not_see_later_changes_of_the_weights(name, small_model):
    model = dataclasses.replace(small_model, weights={key: value.clone() for key, value in small_model.weights.items()})
    backend = create(name, model)
    x, noise = images(1, 32, 32), noise_bank(model.schedule, 32, 32, 0)
    expected = backend.maps(x, noise)[0]
    for value in model.weights.values():
        value.zero_()
    assert torch.equal(backend.maps(x, noise)[0], expected)


def test_two_backends_of_different_models_do_not_mix(name, small_model):
    other = dataclasses.replace(small_model, weights={key: value * 1.1 for key, value in small_model.weights.items()})
    x, noise = images(1, 32, 32), noise_bank(small_model.schedule, 32, 32, 0)
    pair = [create(name, model) for model in (small_model, other)]
    for backend, model in zip(pair, (small_model, other), strict=True):
        assert relative_rms(backend.maps(x, noise)[0], definition(model, x, noise)) <= 1e-5


def test_backend_serves_several_threads(name, small_model, request):
    backend, noise = create(name, small_model), noise_bank(small_model.schedule, 16, 16, 0)
    threads = 3 if request.node.get_closest_marker("interpreter") else 8  # many seconds a call
    inputs = [images(1 + seed % 2, 16, 16, seed) for seed in range(threads)]
    expected = [backend.maps(x, noise)[0].cpu() for x in inputs]
    with ThreadPoolExecutor(threads) as pool:
        got = list(pool.map(lambda x: backend.maps(x, noise)[0].cpu(), inputs))
    assert all(map(torch.equal, got, expected))


ANYWHERE = [(32, 32), (50, 70)]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, size) for name in (*ON_CPU, "eager") for size in ANYWHERE),
        *(("triton", size) for size in ANYWHERE if not torch.cuda.is_available()),
        pytest.param("interpreted", (32, 32), marks=pytest.mark.interpreter),
    ],
    indirect=["name"],
)
def test_an_image_gives_the_same_bits_alone_and_in_a_batch_on_a_cpu(name, small_model, size, request):
    backend, noise = backends.create(name, small_model, "cpu"), noise_bank(small_model.schedule, *size, 0)
    x = images(3 if request.node.get_closest_marker("interpreter") else 7, *size)
    together = backend.maps(x, noise)[0]
    for i in (0, len(x) - 1):
        assert torch.equal(backend.maps(x[i : i + 1], noise)[0], together[i : i + 1])
    assert torch.equal(backend.maps(x.flip(0), noise)[0], together.flip(0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the CUDA device")
def test_the_network_on_interpreted_kernels_equals_the_definition(small_model):
    """The one case of "interpreted" that every run has: the smallest images that are padded."""
    x, noise = images(1, 17, 18), noise_bank(small_model.schedule, 17, 18, seed=4)
    errors, anomaly_maps = create("triton", small_model).maps(x, noise)
    assert relative_rms(errors, definition(small_model, x, noise)) <= 1e-5
    assert relative_rms(anomaly_maps, scoring.anomaly_map(errors)) <= 1e-6


def test_auto_is_a_backend_that_can_run(small_model):
    assert backends.create("auto", small_model).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_auto_on_a_cpu_is_our_kernels_where_they_are_built_and_have_the_precision(small_model, monkeypatch):
    ours = "eager" if backends.unavailable("cpu") else "cpu"
    assert backends.choose("auto", "cpu") == ours
    assert Engine(small_model, "auto", "cpu").backend == ours
    assert backends.choose("auto", "cpu", "bfloat16") == "eager"
    monkeypatch.setattr(library, "unavailable", lambda precision="float32": "cannot run")
    with pytest.raises(BackendError, match="backend cpu: cannot run"):
        backends.create("cpu", small_model, "cpu")
    if library.built():  # what is there and broken is not passed over in silence
        with pytest.raises(BackendError, match="backend cpu: cannot run"):
            Engine(small_model, "auto", "cpu")
    monkeypatch.setattr(library, "built", lambda: False)
    assert backends.choose("auto", "cpu") == "eager"
    assert Engine(small_model, "auto", "cpu").backend == "eager"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_auto_on_a_cuda_device_is_eager():
    assert backends.choose("auto") == backends.choose("auto", "cuda") == "eager"


def test_engine_names_the_backend_that_it_runs(small_model):
    assert Engine(small_model, "eager", "cpu").backend == "eager"
    assert Engine(small_model, EagerBackend(small_model, torch.device("cpu"))).backend == "EagerBackend"


@pytest.mark.parametrize("unknown", ["", "Eager", "fastest", "../eager"])
def test_unknown_backend_is_an_input_error_that_lists_the_known(small_model, unknown):
    with pytest.raises(InputError, match="eager"):
        backends.create(unknown, small_model)
    with pytest.raises(InputError, match="auto"):
        backends.unavailable(unknown)


@pytest.mark.parametrize("unknown", ["", "fp8", "Float32", "half"])
def test_unknown_precision_is_an_input_error_that_lists_the_known(small_model, unknown):
    with pytest.raises(InputError, match=r"precision.*float32, bfloat16, float16"):
        backends.create("eager", small_model, "cpu", unknown)


def test_a_network_that_the_kernels_do_not_take_is_refused_when_the_engine_is_built(small_model):
    config = NetworkConfig(base_width=96)
    weights = {key: torch.zeros(shape) for key, shape in unet.parameter_shapes(config).items()}
    reason = backends.unavailable("triton")
    if reason:
        pytest.skip(reason)
    with pytest.raises(BackendError, match="96 channels, expected a power of two"):
        backends.create("triton", dataclasses.replace(small_model, network=config, weights=weights))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_kernels_without_a_cuda_device_and_without_the_interpreter_say_what_to_do(small_model, tmp_path):
    code = (
        "from sprfast.backends.registry import unavailable; print(unavailable('triton')); "
        "print(unavailable('cuda_graph'))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "no CUDA device here; set TRITON_INTERPRET=1" in first
    assert "no CUDA device here; install" in second


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(2, 2)]),
        (3, [(3, 4)]),
        (32, [(32, 32)]),
        (33, [(32, 32), (1, 1)]),
        (70, [(32, 32), (32, 32), (6, 8)]),
    ],
)
def test_images_are_split_into_buckets(count, expected):
    parts = split(count, CAPTURED)
    assert [(part.stop - part.start, bucket) for part, bucket in parts] == expected
    assert [i for part, _ in parts for i in range(part.start, part.stop)] == list(range(count))


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "cpu:", "meta", "mps"])
def test_unknown_device_is_an_input_error(small_model, device):
    with pytest.raises(InputError, match=r"device.*use cpu, cuda or cuda:N"):
        backends.create("eager", small_model, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_without_a_driver_is_an_error_not_a_fallback(small_model, device):
    with pytest.raises(BackendError, match="no CUDA device here; install"):
        backends.create("eager", small_model, device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_that_is_not_there_is_a_backend_error(small_model):
    with pytest.raises(BackendError, match="CUDA devices here"):
        backends.create("eager", small_model, f"cuda:{torch.cuda.device_count()}")
