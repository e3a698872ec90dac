"""What the suites share: they run on CUDA where there is one, else in Triton's interpreter."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sprfast.formats.model import Model

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
    """The published network at 192x192 on CUDA, a narrow one at 16x16 in the interpreter."""
    from sprfast.bench.gpu import steps

    return steps.model(steps.FULL if CUDA else steps.DRY)


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
