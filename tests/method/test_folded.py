import dataclasses

import numpy as np
import pytest
import torch

from sprfast.backends.tensors import inputs
from sprfast.backends.triton import FusedUNet
from sprfast.config import Level, NetworkConfig, Schedule
from sprfast.errors import InputError
from sprfast.kernels.triton import reference
from sprfast.lowering.fold import fold
from sprfast.method import folded as plan
from sprfast.method import scoring, sde, unet
from sprfast.method.noise import noise_bank
from support.scoring_mode_cases import with_mode

CPU = torch.device("cpu")
SCHEDULES = {
    "published": Schedule(),
    "levels-of-different-draws-and-weights": Schedule(
        (Level(1e-3, 2), Level(0.3, 1, weight=0.25), Level(1.0, 3, weight=2.0))
    ),
    "antithetic": Schedule((Level(0.01, 2),), noise="antithetic"),
}


def through_references(model, x, noise):
    """The plan in float64 through the operators' references."""
    network = FusedUNet(fold(model, torch.float64), CPU, torch.float64, operators=reference)
    x, z = inputs(x, noise, CPU)
    errors = torch.empty_like(x[:, :1])
    noise = network.empty_noise(z)
    network.convolve_noise(z, noise)
    network.error_map(x, z, noise, errors)
    return errors


def definition(model, x, noise):
    network = unet.from_weights(model.network, {name: value.double() for name, value in model.weights.items()})
    return scoring.error_map(network, x, model.schedule, noise)


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [(32, 32), (50, 71)], ids=["even", "odd"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@torch.inference_mode()
def test_folding_changes_nothing_in_float64(small_model, schedule, size):
    model = with_mode(small_model, schedule=schedule)
    x = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = [z.double() for z in noise_bank(schedule, *size, seed=1)]
    assert relative(through_references(model, x, noise), definition(model, x, noise)) <= 1e-12


@torch.inference_mode()
def test_folding_changes_nothing_at_full_width(small_model):
    config = NetworkConfig()
    generator = torch.Generator().manual_seed(5)
    shapes = unet.parameter_shapes(config)
    weights = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    model = dataclasses.replace(small_model, network=config, weights=weights)
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=generator)
    noise = [torch.randn(2, 1, 3, 32, 32, dtype=torch.float64, generator=generator)]
    assert relative(through_references(model, x, noise), definition(model, x, noise)) <= 1e-12


def test_a_plan_has_one_row_a_draw(small_model):
    schedule = SCHEDULES["levels-of-different-draws-and-weights"]
    folded = fold(with_mode(small_model, schedule=schedule))
    assert folded.draws == 6
    times = [1e-3] * 2 + [0.3] + [1.0] * 3
    assert folded.std.tolist() == pytest.approx([sde.std(t) for t in times], rel=1e-6)
    shares = [1 / 3.25 / 2] * 2 + [0.25 / 3.25] + [2 / 3.25 / 3] * 3
    assert folded.scale.tolist() == pytest.approx(
        [share * sde.std(t) ** 2 / 3 for share, t in zip(shares, times, strict=True)], rel=1e-6
    )
    assert folded.head_bias.shape == (6, 3)
    assert tuple(folded.blocks) == plan.BLOCKS
    for name, block in folded.blocks.items():
        if name == "up4":
            assert block.embedding is None  # it is in the head's bias
        else:
            assert block.embedding.shape == (6, block.second.weight.shape[0])
            assert np.array_equal(block.embedding[0], block.embedding[1])
            assert not np.array_equal(block.embedding[0], block.embedding[2])


def test_a_plan_is_contiguous_float32_on_the_cpu_and_apart_from_the_model(small_model):
    folded = fold(small_model)
    own = [value.numpy() for value in small_model.weights.values()]
    arrays = [folded.std, folded.scale, folded.head_weight, folded.head_bias]
    for block in folded.blocks.values():
        for norm in (block.first, block.second):
            arrays += [norm.weight, norm.bias, norm.gamma, norm.beta]
    for array in arrays:
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert not any(np.shares_memory(array, value) for value in own)


def test_arrays_make_the_plan_again(small_model):
    folded = fold(small_model)
    again = plan.from_arrays(small_model.network, 2, folded.to_arrays())
    assert (again.base_width, again.groups, again.draws, tuple(again.blocks)) == (
        folded.base_width,
        folded.groups,
        2,
        plan.BLOCKS,
    )
    arrays = again.to_arrays()
    assert {name: array.shape for name, array in arrays.items()} == plan.shapes(small_model.network, 2)
    for name, array in folded.to_arrays().items():
        assert arrays[name] is array


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda arrays: arrays.pop("up2.second.gamma"), "'up2.second.gamma' is missing"),
        (lambda arrays: arrays.update(extra=arrays["std"]), "'extra' is not one of a plan"),
        (
            lambda arrays: arrays.update(std=arrays["std"].astype(np.float64)),
            r"'std' is float64 \(2,\), expected float32 \(2,\)",
        ),
        (
            lambda arrays: arrays.update(scale=arrays["scale"][:1]),
            r"'scale' is float32 \(1,\), expected float32 \(2,\)",
        ),
    ],
)
def test_arrays_that_are_no_plan_are_refused(small_model, change, match):
    arrays = fold(small_model).to_arrays()
    change(arrays)
    with pytest.raises(InputError, match=match):
        plan.from_arrays(small_model.network, 2, arrays)
