"""Every operator at the shapes of the network, on a CUDA device; the same code on tiny shapes
without one, so that it is known to run.
"""

import dataclasses

import pytest
import torch

from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch
from sprfast.kernels.triton.self_test import SelfTest
from support.kernel_cases import OPERATORS, SEED, STORAGES, Shape, arguments, assert_correct, of_images, rows_of, run

TINY = Shape(32, 8, 8, images=2, draws=3)
LEVELS = ((64, 192), (128, 96), (256, 48), (512, 24), (512, 12))  # channels and size, for a base width of 64
REAL = [Shape(channels, size, size, images=images, draws=3) for images in (1, 4) for channels, size in LEVELS]
ODD = Shape(64, 199, 150, images=2, draws=3, noise_per_image=True, more_rows=1, more_columns=1)


def on_devices(small, real):
    """Real shapes with every operator that takes them on a CUDA device; else small ones in the
    interpreter, with the two operators that between them return a result and write two maps.
    """
    shapes, operators, marks = (real, OPERATORS, [pytest.mark.gpu])
    if launch.INTERPRETED:
        shapes, operators, marks = (small, ("perturb_conv3x3", "affine_swish_pool"), [])
    return pytest.mark.parametrize(
        ("operator", "shape"),
        [
            pytest.param(name, s, marks=marks, id=f"{name}-{s.images}x{s.channels}x{s.height}x{s.width}")
            for s in shapes
            for name in operators
            if s.takes(name)
        ],
    )


@pytest.mark.parametrize("storage", STORAGES, ids=lambda storage: str(storage).removeprefix("torch."))
@on_devices([TINY], [*REAL, ODD])
def test_operator_equals_its_reference_and_repeats_its_bits(operator, shape, storage):
    given = arguments(operator, shape, storage)
    got = {name: value.clone() for name, value in run(operator, given).items()}
    again = run(operator, given)
    assert_correct(operator, given, again)
    for name, value in again.items():
        assert torch.equal(value, got[name]), f"{name}, SPRFAST_TEST_SEED={SEED}"


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@on_devices(
    [dataclasses.replace(TINY, noise_per_image=True)],
    [dataclasses.replace(ODD, images=7), Shape(512, 24, 24, images=7, draws=3)],
)
def test_an_image_gives_the_same_bits_alone_and_in_a_batch(operator, shape, storage):
    given = arguments(operator, shape, storage)
    together = run(operator, given)
    for image in (0, shape.images - 1):
        for name, value in run(operator, of_images(operator, shape, storage, given, [image])).items():
            assert torch.equal(value, rows_of(name, together[name], [image], shape)), (
                f"{name}, image {image}, SPRFAST_TEST_SEED={SEED}"
            )


@on_devices([TINY], [Shape(64, 192, 192, images=307, draws=3)])
def test_a_map_of_more_elements_than_32_bits_count(operator, shape):
    assert launch.INTERPRETED or shape.images * shape.draws * shape.channels * shape.height * shape.width > 2**31
    given = arguments(operator, shape, torch.bfloat16)
    together = run(operator, given)
    last = of_images(operator, shape, torch.bfloat16, given, [shape.images - 1])
    alone = run(operator, last)
    assert_correct(operator, last, alone)
    for name, value in alone.items():
        assert torch.equal(value, rows_of(name, together[name], [shape.images - 1], shape)), (
            f"{name}, SPRFAST_TEST_SEED={SEED}"
        )


@on_devices([TINY], REAL[:1])
def test_operator_passes_its_self_test(operator, shape):
    checked = SelfTest()
    for storage in STORAGES:
        getattr(checked, operator)(*arguments(operator, shape, storage).values())
    assert checked.tested in (1, len(STORAGES))  # the anomaly map has no storage type


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_kernel_that_has_not_run_is_an_error_during_capture(operator):
    shape = Shape(64, 46, 38, images=2, draws=2)  # a size that no other test has
    given = arguments(operator, shape, torch.bfloat16, "cuda")
    torch.cuda.synchronize()
    with (
        pytest.raises(launch.MissingConfigurationError, match="not compiled before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        getattr(kernels, operator)(*given.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_captured_operator_repeats_the_bits_of_its_launch_at_every_replay(operator):
    shape = Shape(64, 46, 40, images=2, draws=2)
    given = arguments(operator, shape, torch.bfloat16, "cuda")
    launched = {name: value.clone() for name, value in run(operator, given).items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        returned = getattr(kernels, operator)(*given.values())
    for _ in range(1000):
        for name in launched.keys() - {"result"}:
            given[name].fill_(torch.nan)
        graph.replay()
        for name, value in launched.items():
            got = returned if name == "result" else given[name]
            assert torch.equal(got, value), f"{name}, SPRFAST_TEST_SEED={SEED}"
