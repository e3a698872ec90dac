"""What the suites share: they run on CUDA where there is one, else in Triton's interpreter."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sprfast.config import Level, NetworkConfig, Preprocessing, Schedule
from sprfast.formats.model import Model
from sprfast.method import unet
from sprfast.method.scoring_mode import ScoringMode

CUDA = torch.cuda.is_available()


def pytest_configure() -> None:
    """Without a CUDA device the kernels run in Triton's interpreter, where times mean nothing."""
    if not CUDA:
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where everything runs."""
    return torch.device("cuda" if CUDA else "cpu")


@pytest.fixture(scope="session")
def model() -> Model:
    """Random weights: the published network at 192x192 on CUDA, a narrow one at 16x16 in the
    interpreter.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NetworkConfig() if CUDA else NetworkConfig(base_width=32, embedding_dim=8)
        weights = {name: value.detach() for name, value in unet.ScoreUNet(network).state_dict().items()}
    return Model(
        network,
        ScoringMode(Schedule((Level(draws=3 if CUDA else 1),))),
        Preprocessing(size=192 if CUDA else 16),
        weights,
    )


@pytest.fixture
def measured(benchmark: Any, device: torch.device) -> Callable[[Callable[[], Any]], Any]:
    """Time a call until the device has done all its work; what it returned."""

    def run(call: Callable[[], Any]) -> Any:
        def whole() -> Any:
            outcome = call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return outcome

        return benchmark.pedantic(whole, rounds=50 if CUDA else 2, warmup_rounds=2 if CUDA else 0)

    return run
