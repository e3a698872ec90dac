import ctypes
import dataclasses
import gc
import json
import math
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sprfast.backends import registry as backends
from sprfast.backends.model_sessions import open_session
from sprfast.backends.sessions.cpu import CpuSession
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.engine.engine import Engine
from sprfast.errors import BackendError, InputError
from sprfast.evaluation import parity
from sprfast.formats.model import Model
from sprfast.kernels.cpu import library
from sprfast.lowering.fold import fold
from sprfast.method import scoring, unet
from sprfast.method.noise import noise_bank
from sprfast.method.scoring_mode import ScoringMode
from sprfast.method.unet import ScoreUNet
from support.scoring_mode_cases import with_mode

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))
CPU = torch.device("cpu")
# relative RMS errors of error maps, by precision
LIMITS = {"float32": 1e-5, "bfloat16": 1e-2}
SAMPLES = 6  # of a pass (kernels/cpu/network.cpp)


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def images(count, height, width, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def definition(model, x, noise):
    network = unet.from_weights(model.network, model.weights)
    with torch.inference_mode():
        return scoring.error_map(network, x, model.schedule, noise)


def relative_rms(got, expected):
    return float((got - expected).norm() / expected.norm())


def random_model(width, schedule):
    config = NetworkConfig(base_width=width, embedding_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(width)
        weights = {name: value.detach() for name, value in ScoreUNet(config).state_dict().items()}
    return Model(config, ScoringMode(schedule), Preprocessing(size=32), weights)


def arrays(x, noise):
    """What a session takes."""
    return x.numpy(), torch.cat(noise)[:, 0].numpy()


def test_published_numbers_within_the_bounds_of_the_backend(golden_folder, golden_document):
    model = Model(
        NetworkConfig(),
        ScoringMode(Schedule((Level(parity.GOLDEN_T, 2),))),
        Preprocessing(),
        parity.golden_weights(golden_document),
    )
    with np.load(golden_folder / "tiny_32.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
    errors, anomaly_maps = backends.create("cpu", model, CPU).maps(arrays["x"], [arrays["z"]])
    assert relative_rms(errors, arrays["error_map"]) <= 1e-4
    torch.testing.assert_close(scoring.image_score(anomaly_maps), arrays["image_score"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (31, 16), (33, 47), (200, 197)])
def test_any_size_equals_the_definition(small_model, size):
    x, noise = images(2, *size), noise_bank(small_model.schedule, *size, 0)
    errors, anomaly_maps = backends.create("cpu", small_model, CPU).maps(x, noise)
    assert relative_rms(errors, definition(small_model, x, noise)) <= 1e-5
    assert relative_rms(anomaly_maps, scoring.anomaly_map(errors)) <= 1e-6


@pytest.mark.parametrize(
    ("width", "schedule"),
    [
        pytest.param(32, Schedule((Level(1e-3, 1),)), id="one-draw"),
        pytest.param(32, Schedule((Level(1e-3, 5), Level(0.05, 2, weight=0.5))), id="two-levels"),
        pytest.param(64, Schedule(), id="published"),
        pytest.param(96, Schedule((Level(1e-3, 2),)), id="three-channels-a-group"),
    ],
)
def test_any_width_and_schedule_equals_the_definition(width, schedule):
    model = random_model(width, schedule)
    x, noise = images(3, 23, 32), noise_bank(schedule, 23, 32, 1)
    assert relative_rms(backends.create("cpu", model, CPU).maps(x, noise)[0], definition(model, x, noise)) <= 1e-5


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
def test_every_instruction_set_equals_the_definition(small_model, monkeypatch, name, precision):
    use(monkeypatch, name, precision)
    x, noise = images(2, 50, 37), noise_bank(small_model.schedule, 50, 37, 0)
    maps = backends.create("cpu", small_model, CPU, precision).maps(x, noise)[0]
    assert relative_rms(maps, definition(small_model, x, noise)) <= LIMITS[precision]


def use(monkeypatch, name, precision):
    """The operators for one instruction set, where it runs here."""
    if name not in library.available(precision):
        pytest.skip(f"no {name} in {precision} here")
    monkeypatch.setattr(library, "operators", lambda precision: library.load(name, precision))


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("size", [(32, 48), (50, 37)])
def test_bits_depend_neither_on_threads_nor_on_the_batch(small_model, set_threads, monkeypatch, size, precision):
    use(monkeypatch, library.available(precision)[0], precision)
    backend, noise = backends.create("cpu", small_model, CPU, precision), noise_bank(small_model.schedule, *size, 0)
    x = images(SAMPLES // 2 + 2, *size)  # two passes, the second one shorter
    set_threads(1)
    expected = [
        torch.cat(parts) for parts in zip(*(backend.maps(x[i : i + 1], noise) for i in range(len(x))), strict=True)
    ]
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        assert all(map(torch.equal, backend.maps(x, noise), expected))


def test_noise_of_each_image_follows_its_image_through_the_passes(small_model):
    count = SAMPLES // 2 + 2
    x, noise = images(count, 32, 32), [torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(1))]
    backend = backends.create("cpu", small_model, CPU)
    together = backend.maps(x, noise)[0]
    assert relative_rms(together, definition(small_model, x, noise)) <= 1e-5
    for i in range(count):
        assert torch.equal(together[i : i + 1], backend.maps(x[i : i + 1], [noise[0][:, i : i + 1]])[0])


def test_expanded_strided_and_wider_inputs_give_the_same_bits(small_model):
    backend, noise = backends.create("cpu", small_model, CPU), noise_bank(small_model.schedule, 32, 48, 0)
    x = images(1, 32, 48).expand(3, -1, -1, -1)
    expected = backend.maps(x.contiguous(), noise)[0]
    assert torch.equal(backend.maps(x, noise)[0], expected)
    assert torch.equal(backend.maps(x.contiguous(memory_format=torch.channels_last), noise)[0], expected)
    assert torch.equal(backend.maps(x, [z.expand(-1, 3, -1, -1, -1) for z in noise])[0], expected)
    transposed = [z.transpose(3, 4).contiguous().transpose(3, 4) for z in noise]
    assert torch.equal(backend.maps(x.double(), transposed)[0], expected)
    assert torch.equal(backend.maps(x.clone().requires_grad_(), noise)[0], expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 47])
def test_what_is_not_finite_in_an_image_is_not_finite_in_its_score(small_model, bad, row):
    backend, noise = backends.create("cpu", small_model, CPU), noise_bank(small_model.schedule, 48, 32, 0)
    x = images(3, 48, 32)
    clean = scoring.image_score(backend.maps(x, noise)[1])
    x[1, 2, row, 31] = bad
    scores = scoring.image_score(backend.maps(x, noise)[1])
    assert scores.isfinite().tolist() == [True, False, True]
    assert torch.equal(scores[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("size", [(15, 32), (32, 15), (1, 1)])
def test_an_image_too_small_is_an_input_error(small_model, size):
    with pytest.raises(InputError, match=f"at least 16 pixels on each side, got {size[0]}x{size[1]}"):
        backends.create("cpu", small_model, CPU).maps(images(1, *size), [torch.zeros(2, 1, 3, *size)])


def test_noise_of_another_size_is_refused_before_it_is_read(small_model):
    with pytest.raises(ValueError, match="noise"):
        backends.create("cpu", small_model, CPU).maps(images(1, 32, 32), noise_bank(small_model.schedule, 16, 16, 0))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image", lambda x, z: (x[:, :2].copy(), z)),
        ("image", lambda x, z: (x.astype(np.float64), z)),
        ("image", lambda x, z: (x[..., ::-1], z)),
        ("image", lambda x, z: (np.frombuffer(b"0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape), z)),
        ("noise", lambda x, z: (x, z[:1].copy())),
        ("noise", lambda x, z: (x, z[:, None])),
        ("noise", lambda x, z: (x, z.astype(np.float16))),
        ("noise", lambda x, z: (x[:, :, :24].copy(), z)),
    ],
)
def test_arrays_that_would_be_misread_are_refused(small_model, name, change):
    given = arrays(images(2, 32, 32), noise_bank(small_model.schedule, 32, 32, 0))
    with pytest.raises(ValueError, match=rf"^{name}: is \w+ \(.*must be float32 \("):
        CpuSession(fold(small_model), lambda: 1).maps(*change(*given))


def test_a_folded_model_of_other_shapes_is_refused(small_model):
    model = fold(small_model)
    norm = dataclasses.replace(model.blocks["up2"].first, beta=np.zeros(32, np.float32))
    model.blocks["up2"] = dataclasses.replace(model.blocks["up2"], first=norm)
    with pytest.raises(ValueError, match=r"^model: up2\.first\.beta: is float32 \(32,\), must be float32 \(128,\)"):
        CpuSession(model, lambda: 1)


def test_another_device_is_a_backend_error_that_says_what_to_do(small_model):
    with pytest.raises(BackendError, match="backend cpu: cannot run on cuda:0; use --device cpu, or another backend"):
        open_session("cpu", small_model, torch.device("cuda:0"), "float32")


def test_several_engines_and_threads_at_once_give_the_bits_of_one(small_model, set_threads):
    set_threads(1)
    models = [with_mode(small_model, schedule=Schedule((Level(1e-3, draws),))) for draws in (1, 2, 3)]
    engines = [Engine(model, "cpu", "cpu") for model in models]
    work = [(engine, images(1 + seed % 4, 16 + 8 * (seed % 3), 32, seed)) for seed in range(8) for engine in engines]
    expected = [engine.maps(x.numpy()) for engine, x in work]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda item: item[0].maps(item[1].numpy()), work))
    for a, b in zip(got, expected, strict=True):
        assert all(map(np.array_equal, a, b))


def test_results_are_their_own_memory(small_model):
    backend, noise = backends.create("cpu", small_model, CPU), noise_bank(small_model.schedule, 32, 32, 0)
    results = backend.maps(images(2, 32, 32), noise)
    copies = [result.clone() for result in results]
    assert [result.untyped_storage().nbytes() for result in results] == [4 * 2 * 32 * 32, 4 * 2 * 256 * 256]
    backend.maps(images(2, 32, 32, seed=1), noise)
    del backend
    gc.collect()
    assert all(map(torch.equal, results, copies))


def test_memory_does_not_grow_with_the_number_of_sizes(small_model):
    class Mallinfo2(ctypes.Structure):
        _fields_ = tuple(
            (name, ctypes.c_size_t)
            for name in (
                *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
                *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
            )
        )

    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("needs glibc")
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    session = CpuSession(fold(small_model), lambda: 2)

    def bytes_with(size):
        session.maps(*arrays(images(1, *size), noise_bank(small_model.schedule, *size, 0)))
        gc.collect()
        found = mallinfo2()
        return found.uordblks + found.hblkhd

    smallest = bytes_with((16, 17))
    largest = bytes_with((128, 128))
    assert largest > smallest + 4 * 128 * 128 * 32 * 6
    for i in range(12):
        bytes_with((16 + 3 * i, 64 - 3 * i))
    assert bytes_with((16, 17)) < smallest + 200_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc/self/statm")
def test_resident_memory_does_not_grow_from_call_to_call(small_model):
    backend, noise = backends.create("cpu", small_model, CPU), noise_bank(small_model.schedule, 32, 32, 0)
    x = images(4, 32, 32)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(10):
        backend.maps(x, noise)
    before = resident()
    for _ in range(50):
        backend.maps(x, noise)
    assert resident() - before < 4e6


def test_an_exception_of_an_observer_reaches_the_caller_and_the_next_call_is_right(small_model):
    session = CpuSession(fold(small_model), lambda: 1)
    x, noise = images(1, 32, 32), noise_bank(small_model.schedule, 32, 32, 0)

    def interrupt(layer):
        raise KeyboardInterrupt(layer.name.decode())

    with pytest.raises(KeyboardInterrupt, match=r"^inc\.first$"):
        session.maps(*arrays(x, noise), interrupt)
    got = session.maps(*arrays(x, noise))
    assert relative_rms(torch.from_numpy(got[0]), definition(small_model, x, noise)) <= 1e-5


def layers_of(model, count, height, width):
    """Name, channels in, shape of the output in one pass, and the spans of memory that the operator
    reads and writes.
    """
    found = []

    def seen(layer):
        shape = (count * 2, layer.height, layer.width, layer.channels_out)
        sources = layer.sources[: layer.sources_count]
        read = [(s.raw, s.raw + 4 * count * 2 * s.height * s.width * s.channels) for s in sources]
        written = (layer.output, layer.output + 4 * math.prod(shape))
        found.append((layer.name.decode(), layer.channels_in, shape, read, written))

    session = CpuSession(fold(model), lambda: 1)
    session.maps(*arrays(images(count, height, width), noise_bank(model.schedule, height, width, 0)), seen)
    return found


def test_layers_are_those_of_the_network_in_the_order_of_their_calls(small_model):
    layers = layers_of(small_model, 1, 47, 33)
    assert [name for name, *_ in layers][:3] == ["inc.first", "inc.second", "down1.first"]
    assert [name for name, *_ in layers][-3:] == ["up4.second", "head", "anomaly map"]
    assert [shape[1:3] for name, _, shape, *_ in layers if name == "down2.second"] == [(11, 8)]
    modules = unet.from_weights(small_model.network, small_model.weights)
    # without the head
    kernels = [module.weight.shape for module in modules.modules() if isinstance(module, torch.nn.Conv2d)][:-1]
    assert [(shape[3], channels_in, 3, 3) for _, channels_in, shape, *_ in layers[:-2]] == kernels


@pytest.mark.parametrize("size", [(192, 192), (47, 33), (16, 31)])
def test_maps_lie_in_little_memory_and_none_where_it_is_still_read(small_model, size):
    layers = layers_of(small_model, 3, *size)[:-2]
    spans = [written for *_, written in layers]
    whole = max(end for _, end in spans) - min(begin for begin, _ in spans)
    assert 2.0 < whole / (4 * 3 * 2 * size[0] * size[1] * small_model.network.base_width) <= 2.25
    for i, (name, _, _, read, (begin, end)) in enumerate(layers):
        for source in read:
            assert source[1] <= begin or end <= source[0], f"{name} overwrites what it reads"
            last = max(j for j in range(i) if spans[j] == source)
            for other in range(last + 1, i):
                assert spans[other][1] <= source[0] or source[1] <= spans[other][0], f"{name} reads what is gone"


def test_the_weights_as_they_were_are_not_kept(small_model):
    plan = fold(small_model)
    weights = [weakref.ref(norm.weight) for block in plan.blocks.values() for norm in (block.first, block.second)]
    network = CpuSession(plan, lambda: 1)
    del plan
    gc.collect()
    assert [weight() for weight in weights] == [None] * 18
    assert network.draws == 2


def test_commands_name_the_backend_that_ran(run, model_path, pictures, tmp_path):
    used = json.loads(run("predict", model_path, *pictures, "--device", "cpu", "--json")[1])
    assert used["backend"] == "cpu"
    assert "backend cpu" in run("predict", model_path, pictures[0], "--device", "cpu")[1]
    report = json.loads(run("parity", model_path, "--images", pictures[0].parent, "--device", "cpu", "--json")[1])
    assert (report["backend"], report["passed"]) == ("cpu", True)
    assert json.loads(run("doctor", "--json")[1])["backend_auto"] == backends.choose("auto")
    summary = json.loads(
        run("calibrate", model_path, pictures[0].parent, "--false-reject-rate", "0.5", "--device", "cpu", "--json")[1]
    )
    assert summary["backend"] == "cpu"
