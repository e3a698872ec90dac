"""Operators that check themselves must notice a kernel that is wrong."""

import types

import pytest
import torch

from sprfast.backends.triton import FusedUNet, network_on
from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch
from sprfast.kernels.triton.self_test import SelfTest, SelfTestError
from sprfast.kernels.triton.trials import relative_rms
from sprfast.lowering.fold import fold
from support.kernel_cases import OPERATORS, Shape, arguments

CPU = torch.device("cpu")
SHAPE = Shape(32, 6, 8, images=2, draws=2)

pytestmark = [
    pytest.mark.skipif(not launch.INTERPRETED, reason="runs in Triton's interpreter; test_kernels_gpu.py has the rest"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),  # a self-test's workspace stays uninitialised
]


def operators_but(**wrong):
    return types.SimpleNamespace(**{**{name: getattr(kernels, name) for name in OPERATORS}, **wrong})


def shifted(raw, affine, out):
    kernels.affine_swish(raw, affine, out)
    out += 1e-3


def half_written(raw, affine, out):
    half = raw.shape[0] // 2
    kernels.affine_swish(raw[:half], affine[:half], out[:half])


def doubled(*given):
    return 2 * kernels.group_norm_affine(*given)


@pytest.mark.parametrize(
    ("precision", "size"),
    [
        ("float32", 16),
        pytest.param("float32", 32, marks=pytest.mark.interpreter),
        pytest.param("bfloat16", 32, marks=pytest.mark.interpreter),
    ],
)
def test_every_configuration_of_the_network_passes(small_model, precision, size):
    network_on(small_model, CPU, precision).self_test(size, size)


@pytest.mark.parametrize("wrong", [shifted, half_written])
def test_a_network_with_a_wrong_operator_is_refused_by_kernel_shape_and_configuration(small_model, wrong):
    network = FusedUNet(fold(small_model), CPU, torch.float32, operators=SelfTest(operators_but(affine_swish=wrong)))
    x, z = torch.zeros(1, 3, 32, 32), torch.zeros(2, 1, 3, 32, 32)
    with pytest.raises(SelfTestError) as raised, torch.inference_mode():
        network.maps(x, z)
    tile = launch.TABLE["affine_swish"][32]
    message = str(raised.value)
    assert message.startswith(f"affine_swish(p_raw float32({1 if wrong is half_written else 2}, 32, 32, 32), ")
    assert f"C=32, BLOCK={tile.pixels}, warps={tile.warps}): out has a relative RMS error of " in message
    assert ("nan" in message) == (wrong is half_written)


def test_a_wrong_result_is_noticed_as_a_wrong_output_is():
    checked = SelfTest(operators_but(group_norm_affine=doubled))
    with pytest.raises(
        SelfTestError, match=r"^group_statistics\(.*\): result has a relative RMS error of 1, at most 5e-06 is allowed"
    ):
        checked.group_norm_affine(*arguments("group_norm_affine", SHAPE, torch.float32).values())


@pytest.mark.parametrize(
    "storage", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_pass_on_their_own(operator, storage):
    checked = SelfTest()
    given = arguments(operator, SHAPE, storage)
    getattr(checked, operator)(*given.values())
    assert checked.tested == 1


def test_a_call_is_tested_once_for_each_shape_stride_and_type():
    calls = []

    def counted(*given):
        calls.append(given)
        kernels.affine_swish(*given)

    checked = SelfTest(operators_but(affine_swish=counted))
    given = arguments("affine_swish", SHAPE, torch.float32)
    checked.affine_swish(*given.values())
    assert given["out"].isnan().all()  # random numbers went through, not these
    checked.affine_swish(*given.values())
    assert given["out"].isfinite().all()
    assert (len(calls), checked.tested) == (2, 1)
    checked.affine_swish(*arguments("affine_swish", SHAPE, torch.bfloat16).values())
    given["out"] = torch.full((4, 6, 8, 64), torch.nan).permute(0, 3, 1, 2)[:, :32]
    checked.affine_swish(*given.values())
    assert (len(calls), checked.tested) == (4, 3)


def test_a_failed_test_is_repeated():
    checked = SelfTest(operators_but(affine_swish=shifted))
    for _ in range(2):
        with pytest.raises(SelfTestError):
            checked.affine_swish(*arguments("affine_swish", SHAPE, torch.float32).values())
    assert checked.tested == 0


def test_only_operators_have_a_self_test():
    with pytest.raises(AttributeError):
        SelfTest().launch  # noqa: B018


def test_relative_rms():
    expected = torch.tensor([3.0, 4.0])
    assert relative_rms(expected, expected) == 0
    assert relative_rms(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert relative_rms(torch.tensor([3.0, torch.nan]), expected) != relative_rms(
        torch.tensor([3.0, torch.nan]), expected
    )
