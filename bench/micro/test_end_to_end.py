"""Images to maps through every backend and peer that runs here, and their parity."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sprfast.bench.core import peers
from sprfast.bench.gpu import waterfall
from sprfast.errors import BackendError
from sprfast.formats.model import Model
from sprfast.method.noise import noise_bank


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("candidate", waterfall.CANDIDATES, ids=lambda candidate: candidate.name)
def test_end_to_end(
    candidate: peers.Candidate, images: int, model: Model, device: torch.device, measured: Callable[..., Any]
) -> None:
    """Time one candidate, then hold its maps against the definition."""
    size = model.preprocessing.size
    noise = noise_bank(model.schedule, size, size, model.noise_seed)
    x = torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    truth = peers.Definition(model).maps(x, noise)
    try:
        maps = candidate.build(model, [z.to(device) for z in noise], device)
    except BackendError as error:
        pytest.skip(str(error))
    on_device = x.to(device)
    given = measured(lambda: maps(on_device))
    assert waterfall.parity(given, truth, peers.TOLERANCES[candidate.precision])["passed"]
