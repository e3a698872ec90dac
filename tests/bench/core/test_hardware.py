import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sprfast.bench.core import hardware
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.errors import BackendError, InputError
from sprfast.formats.model import Model
from sprfast.method import unet
from sprfast.method.scoring_mode import ScoringMode
from sprfast.system import environment

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MIB = 2**20


@pytest.fixture(scope="module")
def model():
    config = NetworkConfig(32, 8)
    with torch.random.fork_rng():
        weights = unet.ScoreUNet(config).state_dict()
    return Model(config, ScoringMode(Schedule((Level(1e-3, 2), Level(1e-2, 1)))), Preprocessing(size=32), weights)


class NVMLError(Exception):
    pass


class Driver:
    """Stands in for NVML's library: counts what is asked of it."""

    NVMLError, NVML_CLOCK_SM, NVML_CLOCK_MEM = NVMLError, 1, 2

    def __init__(self):
        self.millijoules, self.open, self.refused = 1_000_000, 0, set()

    def __getattribute__(self, name):
        if name.startswith("nvml") and name in self.refused:
            raise NVMLError("Not Supported")
        return super().__getattribute__(name)

    def nvmlInit(self):  # noqa: N802
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid != "GPU-5a8b":
            raise NVMLError("Not Found")
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        assert handle == "handle"
        assert self.open == 1
        return self.millijoules

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):  # noqa: N802
        return 700_000

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.65.06"


@pytest.fixture
def driver(monkeypatch):
    """A driver, and a CUDA device as far as torch tells of one, with memory that grows by every
    call of `grow`.
    """
    driver = Driver()
    properties = SimpleNamespace(name="a GPU", total_memory=2**36, major=9, minor=0, uuid="5a8b")
    memory = {"allocated": 10 * MIB, "reserved": 16 * MIB}
    driver.memory, driver.peak = memory, {}
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(hardware, "ENERGY_SECONDS", 0.0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: memory.update(reserved=16 * MIB))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: driver.peak.update(memory))
    for name in ("allocated", "reserved"):
        monkeypatch.setattr(torch.cuda, f"memory_{name}", lambda device, name=name: memory[name])
        monkeypatch.setattr(torch.cuda, f"max_memory_{name}", lambda device, name=name: driver.peak[name])
    return driver


def test_ceilings_are_rates_and_what_an_image_asks(model):
    found = hardware.ceilings(model, CPU, ["float32", "bfloat16"], 32, 40)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert list(found) == ["matmul_gflop_per_s", "copy_gb_per_s", "gflop_per_image", "least_mb_per_image"]
    assert list(found["matmul_gflop_per_s"]) == ["float32", "bfloat16"]
    assert min(found["copy_gb_per_s"], *found["matmul_gflop_per_s"].values()) > 0
    assert found["gflop_per_image"] == pytest.approx(3e-9 * hardware.flops(model.network, 32, 40))
    assert found["least_mb_per_image"]["float32"] == pytest.approx(
        3 * 4e-6 * hardware.convolution_values(model.network, 32, 40)
    )
    assert found["least_mb_per_image"]["bfloat16"] == found["least_mb_per_image"]["float32"] / 2


def test_ceiling_of_the_product_is_its_operations_over_its_time(model, monkeypatch):
    monkeypatch.setattr(hardware.timing, "spreads", lambda clocks, repeats: {name: {"median": 0.5} for name in clocks})
    monkeypatch.setitem(hardware.MATRIX, "cpu", 1000)
    monkeypatch.setitem(hardware.COPIED, "cpu", 10**6)
    found = hardware.ceilings(model, CPU, ["float32"], 32, 32)
    assert found["matmul_gflop_per_s"] == {"float32": pytest.approx(4.0)}
    assert found["copy_gb_per_s"] == pytest.approx(2e-3)


@pytest.mark.parametrize("name", ["tf32", "float8"])
def test_ceilings_of_a_precision_that_the_device_has_not_are_refused(name, model):
    with pytest.raises(InputError, match=f"{name}.*cpu.*float32, bfloat16"):
        hardware.ceilings(model, CPU, ["float32", name], 32, 32)


@pytest.mark.parametrize("before", [True, False])
def test_ceilings_leave_the_global_setting_as_it_was(before, model, monkeypatch):
    seen, product, matmul = [], torch.mm, torch.backends.cuda.matmul

    def mm(*given, **named):
        seen.extend([matmul.allow_tf32] if "out" in named else [])  # others count operations
        return product(*given, **named)

    monkeypatch.setattr(torch, "mm", mm)
    kept, matmul.allow_tf32 = matmul.allow_tf32, before
    try:
        hardware.ceilings(model, CPU, ["float32"], 32, 32)
        assert set(seen) == {False}
        assert matmul.allow_tf32 is before
    finally:
        matmul.allow_tf32 = kept


@pytest.mark.parametrize(("height", "width"), [(192, 192), (100, 70)])
def test_values_of_the_convolutions_of_the_published_network(height, width):
    layers = (
        [(3, 64), (64, 64)],
        [(64, 128), (128, 128)],
        [(128, 256), (256, 256)],
        [(256, 512), (512, 512)],
        [(512, 512)] * 2,
    )
    upper = [(1024, 512), (512, 256)], [(512, 256), (256, 128)], [(256, 128), (128, 64)], [(128, 64), (64, 64), (64, 3)]
    values = 0
    for levels, pairs in ((range(5), layers), ((3, 2, 1, 0), upper)):
        for level, pair in zip(levels, pairs, strict=True):
            values += sum(sum(channels) for channels in pair) * (height >> level) * (width >> level)
    assert hardware.convolution_values(NetworkConfig(), height, width) == values


def test_percent_of_both_ceilings():
    ceilings = {
        "matmul_gflop_per_s": {"float32": 1000.0, "bfloat16": 4000.0},
        "copy_gb_per_s": 20.0,
        "gflop_per_image": 5.0,
        "least_mb_per_image": {"float32": 100.0, "bfloat16": 50.0},
    }
    assert hardware.percent(ceilings, "float32", 40.0) == {name: pytest.approx(20.0) for name in hardware.SHARES}
    assert list(hardware.percent(ceilings, "bfloat16", 40.0).values()) == pytest.approx([5.0, 10.0])


def test_usage_on_a_cpu_has_no_figures_and_says_why():
    assert hardware.held(CPU) == (0, 0)
    found = hardware.usage(lambda: pytest.fail("nothing to measure"), CPU, 4, (0, 0))
    assert found == {
        "peak_memory_mib": None,
        "joules_per_image": None,
        "energy_reason": "energy is measured on CUDA devices only",
    }


def test_usage_is_memory_above_what_was_held_and_energy_of_the_calls_alone(driver, monkeypatch):
    monkeypatch.setattr(hardware, "ENERGY_SECONDS", 0.01)
    before = hardware.held(CUDA)
    driver.memory["allocated"] += 30 * MIB  # the candidate's weights
    driver.memory["reserved"] = 500 * MIB  # given back before the call
    made = []

    def call():
        made.append(driver.open)
        driver.millijoules += 6_000
        driver.peak = {"allocated": driver.memory["allocated"] + 60 * MIB, "reserved": 116 * MIB}

    found = hardware.usage(call, CUDA, 4, before)
    assert found == {
        "peak_memory_mib": {"allocated": 90.0, "reserved": 100.0},
        "joules_per_image": 1.5,
        "energy_reason": None,
    }
    assert made[0] == 0  # the call for the memory
    assert set(made[1:]) == {1}
    assert len(made) > 2
    assert driver.open == 0


def test_energy_is_measured_over_one_call_at_least(driver):
    made = []
    found = hardware.usage(lambda: made.append(0), CUDA, 1, hardware.held(CUDA))
    assert found["joules_per_image"] == 0.0
    assert len(made) == 2


def test_a_failing_candidate_is_not_taken_for_missing_energy(driver):
    def call():
        raise BackendError("no such kernel")

    with pytest.raises(BackendError, match="no such kernel"):
        hardware.usage(call, CUDA, 1, hardware.held(CUDA))


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"])
def test_a_driver_that_refuses_is_the_reason_for_missing_energy(name, driver):
    driver.refused = {name}
    found = hardware.usage(lambda: None, CUDA, 1, hardware.held(CUDA))
    assert found["joules_per_image"] is None
    assert found["energy_reason"] == "the driver of cuda:0 does not answer by NVML: Not Supported"
    assert found["peak_memory_mib"] is not None
    assert driver.open == 0


def test_without_nvidia_ml_py_the_reason_says_what_to_install(driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = hardware.usage(lambda: None, CUDA, 1, hardware.held(CUDA))
    assert found["joules_per_image"] is None
    assert "pip install 'sprfast[bench]'" in found["energy_reason"]
    assert environment.describe(CUDA)["devices"]["cuda:0"]["driver"] is None


def test_environment_has_the_clocks_of_a_cuda_device(driver):
    described = environment.describe(CUDA)["devices"]["cuda:0"]
    figures = {"driver": "580.65.06", "power_limit_w": 700.0, "clocks_mhz": {"sm": 1980, "memory": 2619}}
    assert described.items() >= figures.items()
    driver.refused = {"nvmlDeviceGetEnforcedPowerLimit"}
    assert environment.describe(CUDA)["devices"]["cuda:0"].items() >= (figures | {"power_limit_w": None}).items()
    driver.refused = {"nvmlInit"}
    nothing = {"driver": None, "power_limit_w": None, "clocks_mhz": {"sm": None, "memory": None}}
    assert environment.describe(CUDA)["devices"]["cuda:0"].items() >= nothing.items()
    assert driver.open == 0


@pytest.mark.parametrize(
    ("text", "mhz", "name"),
    [
        ("model name\t: a CPU\ncpu MHz\t\t: 1000.5\n\nmodel name\t: a CPU\ncpu MHz\t\t: 2001.5\n", 1501, "a CPU"),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", None, None),
        (None, None, None),
    ],
)
def test_environment_has_the_mean_clock_of_the_cpu_where_linux_tells_it(text, mhz, name, monkeypatch):
    original = Path.read_text

    def read_text(self, *given, **named):
        if self != Path("/proc/cpuinfo"):
            return original(self, *given, **named)
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read_text)
    described = environment.describe(CPU)
    assert described["cpu_mhz"] == mhz
    assert described["cpu"] == name or name is None


def test_nvidia_ml_py_has_all_that_is_asked_of_it():
    pynvml = pytest.importorskip("pynvml")
    assert {name for name in vars(Driver) if name.lower().startswith("nvml")} <= set(dir(pynvml))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_ceilings_and_usage_on_a_gpu(model):
    found = hardware.ceilings(model, CUDA, ["float32", "tf32", "bfloat16"], 64, 64)
    rates = found["matmul_gflop_per_s"]
    assert rates["float32"] < rates["tf32"] < rates["bfloat16"]
    before = hardware.held(CUDA)
    a = torch.randn(2048, 2048, device=CUDA)
    used = hardware.usage(lambda: a @ a, CUDA, 2, before)
    assert used["peak_memory_mib"]["allocated"] >= 2 * 16
    assert used["peak_memory_mib"]["reserved"] >= used["peak_memory_mib"]["allocated"] - 1
    assert (used["joules_per_image"] is None) is (used["energy_reason"] is not None)
    assert used["joules_per_image"] is None or 0 < used["joules_per_image"] < math.inf
