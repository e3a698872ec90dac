import copy

import pytest
import torch

from sprfast.bench.core import audits, cases, drivers, hardware, recommend, sweeps
from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.formats.model import Model
from sprfast.method import unet
from sprfast.method.scoring_mode import ScoringMode


@pytest.fixture(scope="session", autouse=True)
def small_runs():
    """How often things are measured does not matter, so that each is measured a few times."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(hardware.MATRIX, "cpu", 64)
        patched.setitem(hardware.COPIED, "cpu", 2**16)
        for module, name, value in (
            (audits, "ROUNDS", 3),
            (sweeps, "ROUNDS", 2),
            (drivers, "LEAST_FRAMES", 3),
            (recommend, "LEAST_QUERIES", 3),
        ):
            patched.setattr(module, name, value)
        yield


@pytest.fixture(scope="session")
def two_levels():
    """A narrow network for 16x16 images, with two levels of different numbers of draws."""
    config = NetworkConfig(32, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = unet.ScoreUNet(config).state_dict()
    schedule = Schedule((Level(1e-3, 2, 1.0), Level(1e-2, 1, 3.0)))
    return Model(config, ScoringMode(schedule), Preprocessing(size=16), weights, noise_seed=5)


@pytest.fixture(scope="session")
def bench_run(two_levels):
    """A run of every candidate of the CPU; torch's state before and after it."""

    def state():
        switches = (torch.get_num_threads(), torch.is_grad_enabled(), torch.backends.cudnn.allow_tf32)
        return switches, torch.get_rng_state().tolist()

    before = state()
    document = cases.run(two_levels, cases.BenchOptions(batch=3, seconds=0.05, device="cpu"))
    return document, before, state()


@pytest.fixture
def document(bench_run):
    """The report of `bench_run`."""
    return copy.deepcopy(bench_run[0])
