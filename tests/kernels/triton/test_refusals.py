"""What operators refuse, each with a sentence that names the argument."""

import dataclasses
import functools
import inspect

import pytest
import torch

from sprfast.kernels import triton as kernels
from sprfast.kernels.triton import launch, reference
from support.kernel_cases import OPERATORS, Shape, arguments

PLAIN = Shape(32, 6, 8, images=2, draws=2)
META = functools.partial(torch.empty, device="meta")


def assert_taken(operator, given):
    with launch.recorded(90) as launches:
        getattr(kernels, operator)(*given.values())
    assert launches


def assert_refused(operator, given, *words):
    with pytest.raises(launch.UnsupportedError) as raised, launch.recorded(90):
        getattr(kernels, operator)(*given.values())
    reason = str(raised.value)
    assert all(word in reason for word in words), reason


def taking(*names):
    """Pairs of an operator and one of these arguments of it."""
    return [
        (op, name) for op in OPERATORS for name in names if name in inspect.signature(getattr(reference, op)).parameters
    ]


def plain(operator, **changes):
    """Consistent arguments on the meta device."""
    return arguments(operator, dataclasses.replace(PLAIN, **changes), torch.float32, "meta")


PLANES = [("affine_swish_head", "out"), ("norm_swish_head", "out"), ("anomaly_map", "out")]  # no feature maps
MAPS = [pair for pair in taking("raw", "noise", "out", "pooled") if pair not in PLANES]
FIRST = ("noise_conv3x3", "perturb_conv3x3")
NUMBERS = ("affine", "embedding", "bias", "head_bias", "gamma", "beta", "weight", "scale", "std")
PARAMETERS = PLANES + taking(*NUMBERS, "x", "z", "errors", "rows", "columns")


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_is_refused_below_is_taken_unchanged(operator):
    assert_taken(operator, plain(operator))


# Each array of each operator once.


@pytest.mark.parametrize(("operator", "name"), MAPS + PARAMETERS)
def test_an_array_of_another_type_number_of_dimensions_or_layout_is_refused(operator, name):
    given = plain(operator)
    assert_refused(operator, {**given, name: given[name].double()}, "float64", f"{name}:")
    for size in ((), (2, 1, 3, 6, 8) if given[name].dim() < 5 else (4, 32, 6, 8)):
        assert_refused(operator, {**given, name: META(size)}, name)
    size = given[name].shape
    if (operator, name) in MAPS:
        assert_refused(operator, {**given, name: META(size)}, f"{name}:", "strides", "channels-last")
    else:
        strided = META((*size[:-1], 2 * size[-1]))[..., ::2]
        assert_refused(operator, {**given, name: strided}, f"{name}:", "strides", "contiguous")


@pytest.mark.parametrize(
    ("operator", "name"), [pair for pair in MAPS + PARAMETERS if pair != ("group_norm_affine", "raw")]
)
def test_sizes_that_do_not_fit_together_are_refused(operator, name):
    given = plain(operator)
    for axis in {min(1, given[name].dim() - 1), given[name].dim() - 1}:
        size = list(given[name].shape)
        # one more: padding when up-sampling, noise of two images
        size[axis] += 2 if name in ("out", "z") else 1
        changed = META(size).to(memory_format=torch.channels_last) if len(size) == 4 else META(size)
        assert_refused(operator, {**given, name: changed})


@pytest.mark.parametrize(("operator", "name"), [pair for pair in taking("out", "pooled") if pair[0] not in FIRST])
def test_output_in_another_storage_type_than_the_input_is_refused(operator, name):
    given = plain(operator)
    given[name] = given[name].bfloat16()
    assert_refused(operator, given, f"{name}:", "bfloat16")


# What all maps and all parameters are held to.


@pytest.mark.parametrize("name", ["raw", "out", "affine"])
def test_wrong_type_or_number_of_dimensions_is_refused(name):
    given = plain("affine_swish")
    for dtype in (torch.float64, torch.int32, torch.bool):
        assert_refused("affine_swish", {**given, name: given[name].to(dtype)}, str(dtype), f"{name}:")
    for size in ((), (32,), (4, 32), (4, 2, 32, 1), (2, 1, 3, 6, 8)):
        assert_refused("affine_swish", {**given, name: META(size)}, f"{name}:")


@pytest.mark.parametrize("channels", [8, 48, 2048])
def test_channels_that_are_no_power_of_two_within_limits_are_refused(channels):
    given = plain("affine_swish", channels=channels, groups=4)
    assert_refused("affine_swish", given, f"{channels} channels", "16 to 1024")


@pytest.mark.parametrize("name", ["raw", "out"])
def test_slice_that_is_not_aligned_is_refused(name):
    given = plain("affine_swish")
    samples, channels, height, width = given[name].shape
    wide = META((samples, height, width, channels + 16)).permute(0, 3, 1, 2)
    odd = META((samples, height, width, channels + 4)).permute(0, 3, 1, 2)
    for part in (wide[:, 4 : 4 + channels], odd[:, :channels]):
        assert_refused("affine_swish", {**given, name: part}, f"{name}:", "pixels", "elements apart")


@pytest.mark.parametrize(("height", "width"), [(8192, 8192), (1, 32768), (32768, 1)])
def test_sizes_beyond_32_bit_offsets_are_refused(height, width):
    given = plain("affine_swish", height=height, width=width)
    assert_refused("affine_swish", given, "32-bit offsets", f"{height}x{width}")


@pytest.mark.parametrize("operator", ["affine_swish", "anomaly_map"])
def test_more_samples_than_a_grid_has_rows_are_refused(operator):
    assert_refused(operator, plain(operator, images=65536, draws=1), "65536", "65535")
    assert_taken(operator, plain(operator, images=65535, draws=1))


# What single operators are held to.


@pytest.mark.parametrize(("operator", "name"), taking("scale", "std", "embedding"))
def test_no_draws_and_draws_that_do_not_divide_the_samples_are_refused(operator, name):
    given = plain(operator)
    for draws in (0, 3):
        given[name] = META((draws, *given[name].shape[1:]))
        assert_refused(operator, given, f"{name}:")


def test_one_image_expanded_to_a_batch_is_refused():
    given = plain("perturb_conv3x3")
    given["x"] = META((1, 3, 6, 8)).expand(2, -1, -1, -1)
    assert_refused("perturb_conv3x3", given, "x:", "contiguous")


def test_noise_expanded_over_images_is_taken():
    given = plain("affine_swish_head")
    given["z"] = given["z"].expand(-1, 2, -1, -1, -1)
    assert_taken("affine_swish_head", given)
    given = plain("noise_conv3x3", noise_per_image=True)
    given["z"] = given["z"][:, :1].expand(-1, 2, -1, -1, -1)
    assert_taken("noise_conv3x3", given)


@pytest.mark.parametrize(("operator", "name"), taking("z"))
def test_noise_of_other_draws_images_or_sizes_is_refused(operator, name):
    for size in ((1, 1, 3, 6, 8), (2, 3, 3, 6, 8), (2, 1, 1, 6, 8), (2, 1, 3, 8, 6)):
        assert_refused(operator, {**plain(operator), "z": META(size)}, "z:", str(size))


@pytest.mark.parametrize(
    ("operator", "name"),
    [
        ("group_norm_affine", "raw"),
        ("group_norm_swish", "raw"),
        ("norm_swish", "raw"),
        ("noise_conv3x3", "out"),
        ("perturb_conv3x3", "noise"),
        ("perturb_conv3x3", "out"),
    ],
)
def test_slice_where_whole_pixels_are_needed_is_refused(operator, name):
    for size in ((6, 8), (1, 1)):
        given = plain(operator, height=size[0], width=size[1])
        given[name] = META((given[name].shape[0], *size, 64)).permute(0, 3, 1, 2)[:, :32]
        assert_refused(operator, given, f"{name}:", "64 elements apart")


@pytest.mark.parametrize(("operator", "name"), taking("arrived"))
def test_counters_that_are_not_one_whole_number_a_sample_are_refused(operator, name):
    given = plain(operator)
    for counters in (META(6), META(5, dtype=torch.int32), META(12, dtype=torch.int32)[::2]):
        assert_refused(operator, {**given, name: counters}, f"{name}:", "expected contiguous int32 (6,)")


@pytest.mark.parametrize("operator", ["affine_swish_head", "noise_conv3x3"])
def test_more_channels_than_the_image_sided_kernels_take_are_refused(operator):
    assert_refused(operator, plain(operator, channels=256), "256 channels", "128")


@pytest.mark.parametrize(("operator", "name"), taking("groups"))
def test_groups_that_do_not_divide_the_channels_are_refused(operator, name):
    for groups in (0, -1, 3, 24, 64):
        assert_refused(operator, {**plain(operator), name: groups}, f"{groups} groups of 32 channels")


@pytest.mark.parametrize(("operator", "name"), [pair for pair in taking("z") if pair[0] != "norm_swish_head"])
def test_noise_beyond_32_bit_offsets_is_refused(operator, name):
    given = plain(operator, height=4096, width=4096, channels=32, images=1, draws=50)
    assert_refused(operator, given, "z:", "32-bit offsets")
