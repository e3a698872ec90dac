"""Frames to network inputs by the C++ engine against `data.images`, bit for bit."""

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import strategies as st

from sprfast.config import Preprocessing
from sprfast.data.images import load_image, network_size
from sprfast.data.opening import check_pixel_count
from sprfast.errors import InputError
from sprfast.kernels.cpu import library
from support.cpu_units import TEXT, UnitError, checked, full, units
from support.fuzzing import fuzzed

pytestmark = pytest.mark.usefixtures("machine")
FORMATS = ("grey8", "grey16", "rgb8", "bgr8", "rgb16", "bgr16")  # as PixelFormat has them
POLICIES = ("fit", "stretch", "refuse")  # as SizePolicy has them
INVALID_ARGUMENT, BAD_IMAGE = 1, 3  # of Code
SIZES = {  # height, width and preprocessing.size
    "shrunk": (50, 41, 16),
    "shrunk-to-a-wide-one": (40, 70, 19),
    "shrunk-to-a-tall-one": (93, 47, 17),
    "enlarged": (9, 13, 33),
    "enlarged-from-a-pixel": (1, 1, 16),
    "enlarged-from-a-row": (1, 5, 16),
    "enlarged-from-a-column": (6, 1, 16),
    "of-the-size": (16, 16, 16),
    "of-the-size-and-wide": (17, 43, 17),
    "of-the-size-and-tall": (45, 16, 16),
    "one-pixel-more": (18, 18, 17),
    "one-pixel-less": (15, 15, 16),
    "thin": (3, 301, 16),
    "thin-and-tall": (257, 2, 16),
    "much-smaller": (700, 900, 16),
}


def network_input(array, preprocessing, pixel_format, *, padding=0, offset=0, operators=None, **changes):
    """(3, H, W) of the rows of `array`, `padding` bytes between them, in memory of just their size.

    `changes` are fields of the frame that say something else.
    """
    height, width = array.shape[:2]
    row = array[0].nbytes
    pitch = row + padding
    size = (height - 1) * pitch + row
    memory = full(offset + size, 0xA5, np.uint8)
    rows = np.lib.stride_tricks.as_strided(memory[offset:], (height, row), (pitch, 1))
    rows[...] = np.ascontiguousarray(array).view(np.uint8).reshape(height, row)
    frame = {"data": memory.ctypes.data + offset, "bytes": size, "height": height, "width": width, "pitch": pitch}
    frame |= changes
    expected = (0, 0) if changes else network_size(height, width, preprocessing)
    guarded = full(3 * expected[0] * expected[1] + 2, 7.5, np.float32)
    text = ctypes.create_string_buffer(TEXT)
    code = units().unit_network_input(
        ctypes.c_void_p(frame["data"]), ctypes.c_int64(frame["bytes"]), frame["height"], frame["width"],
        ctypes.c_int64(frame["pitch"]), FORMATS.index(pixel_format), preprocessing.size,
        POLICIES.index(preprocessing.size_policy), preprocessing.bit_depth, ctypes.c_int64(preprocessing.max_pixels),
        operators, ctypes.c_void_p(guarded.ctypes.data + 4), text,
    )  # fmt: skip
    checked(code, text)
    assert guarded[0] == guarded[-1] == 7.5
    return guarded[1:-1].reshape(3, *expected)


def frame_of(pixel_format, height, width, content="random", bit_depth=16):
    """An array of this format and what `load_image` is to be told of it."""
    deep, colour = pixel_format.endswith("16"), not pixel_format.startswith("grey")
    top = 2**bit_depth - 1 if deep else 255
    shape = (height, width, 3) if colour else (height, width)
    if content == "random":
        values = np.random.default_rng(height * 1000 + width).integers(0, top + 1, shape)
    elif content == "checkerboard":  # which overshoots
        values = np.indices(shape).sum(axis=0) % 2 * top
    elif content == "blocks":
        values = (np.indices(shape)[:2] // 5).sum(axis=0) % 2 * top
    else:
        values = np.full(shape, {"zeros": 0, "top": top}[content])
    return values.astype(np.uint16 if deep else np.uint8), pixel_format[:3] if colour else None


def assert_equal(array, order, preprocessing, pixel_format, **options):
    expected = load_image(array, preprocessing, channel_order=order).pixels
    got = network_input(array, preprocessing, pixel_format, **options)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("policy", ["fit", "stretch"])
@pytest.mark.parametrize(("height", "width", "size"), SIZES.values(), ids=SIZES)
def test_a_frame_has_the_bits_of_load_image(pixel_format, policy, height, width, size):
    array, order = frame_of(pixel_format, height, width)
    assert_equal(array, order, Preprocessing(size=size, size_policy=policy), pixel_format)


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("content", ["zeros", "top", "checkerboard", "blocks"])
@pytest.mark.parametrize(("height", "width", "size"), [(50, 41, 16), (9, 13, 33), (16, 16, 16)])
def test_extreme_content(pixel_format, content, height, width, size):
    array, order = frame_of(pixel_format, height, width, content)
    assert_equal(array, order, Preprocessing(size=size), pixel_format)


def test_a_pass_is_left_out_where_a_side_keeps_its_size():
    for (height, width), pixel_format in itertools.product([(16, 39), (39, 16), (16, 7), (7, 16)], FORMATS):
        array, order = frame_of(pixel_format, height, width)
        assert_equal(array, order, Preprocessing(size=16, size_policy="stretch"), pixel_format)


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("padding", [0, 1, 5, 64])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_rows_lie_as_the_pitch_says_and_need_no_alignment(pixel_format, padding, offset):
    array, order = frame_of(pixel_format, 35, 37)
    assert_equal(array, order, Preprocessing(size=16), pixel_format, padding=padding, offset=offset)


@pytest.mark.parametrize("bit_depth", [8, 10, 12, 15, 16])
@pytest.mark.parametrize("pixel_format", ["grey16", "rgb16"])
def test_every_depth(bit_depth, pixel_format):
    for content in ("random", "top"):
        array, order = frame_of(pixel_format, 33, 40, content, bit_depth)
        assert_equal(array, order, Preprocessing(size=16, bit_depth=bit_depth), pixel_format)


@pytest.mark.parametrize("name", library.INSTRUCTION_SETS)
@pytest.mark.parametrize("pixel_format", ["grey8", "rgb8", "grey16", "rgb16"])
def test_every_instruction_set(machine, name, pixel_format):
    operators = ctypes.c_void_p(machine.operators(name))
    if not operators:
        pytest.skip(f"this processor or this build has no {name}")
    for height, width, size in SIZES.values():
        array, order = frame_of(pixel_format, height, width)
        assert_equal(array, order, Preprocessing(size=size), pixel_format, operators=operators)
        array, order = frame_of(pixel_format, height, width, "blocks")
        assert_equal(array, order, Preprocessing(size=size), pixel_format, operators=operators)


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_a_cameras_frame(pixel_format):
    array, order = frame_of(pixel_format, 480, 752)
    assert_equal(array, order, Preprocessing(), pixel_format)


@fuzzed(
    600,
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    size=st.integers(16, 70),
    policy=st.sampled_from(POLICIES),
    pixel_format=st.sampled_from(FORMATS),
    content=st.sampled_from(["random", "checkerboard", "blocks"]),
    bit_depth=st.integers(8, 16),
    padding=st.integers(0, 9),
)
def test_any_frame_has_the_bits_of_load_image_or_is_refused_as_there(
    height, width, size, policy, pixel_format, content, bit_depth, padding
):
    array, order = frame_of(pixel_format, height, width, content, bit_depth)
    preprocessing = Preprocessing(size=size, size_policy=policy, bit_depth=bit_depth, max_pixels=12_000)
    refusal = ""
    try:
        load_image(array, preprocessing, channel_order=order)
    except InputError as error:
        refusal = str(error).removeprefix("array: ")
    if not refusal:
        assert_equal(array, order, preprocessing, pixel_format, padding=padding)
        return
    with pytest.raises(UnitError) as refused:
        network_input(array, preprocessing, pixel_format, padding=padding, height=height, width=width)
    assert refused.value.args == (BAD_IMAGE, refusal)


REFUSED = {  # height, width, preprocessing
    "no-rows": (0, 5, {}),
    "no-columns": (5, 0, {}),
    "above-max-pixels": (11, 10, {"max_pixels": 109}),
    "longest-side": (1, 1_000_001, {}),
    "thin": (30, 999_999, {"size": 512, "size_policy": "stretch"}),
    "not-square": (16, 17, {"size_policy": "refuse"}),
    "too-much-input": (100, 50_000, {"size": 192}),
}


@pytest.mark.parametrize(("height", "width", "preprocessing"), REFUSED.values(), ids=REFUSED)
def test_sizes_are_refused_as_by_load_image(height, width, preprocessing):
    preprocessing = Preprocessing(**preprocessing)
    with pytest.raises(InputError) as expected:
        load_image(np.broadcast_to(np.uint8(0), (height, width)), preprocessing)
    with pytest.raises(UnitError) as refused:
        network_input(np.zeros((1, 1), np.uint8), preprocessing, "grey8", height=height, width=width)
    assert refused.value.args == (BAD_IMAGE, str(expected.value).removeprefix("array: "))


@pytest.mark.parametrize("pixel_format", ["grey16", "rgb16", "bgr16"])
def test_a_value_above_the_depth_is_refused_as_by_load_image(pixel_format):
    preprocessing = Preprocessing(size=16, bit_depth=10)
    array, order = frame_of(pixel_format, 17, 16, bit_depth=10)
    array += 3
    array.reshape(-1)[-1] = 1024
    array = np.minimum(array, 1024)
    with pytest.raises(InputError) as expected:
        load_image(array, preprocessing, channel_order=order)
    with pytest.raises(UnitError) as refused:
        network_input(array, preprocessing, pixel_format)
    assert refused.value.args == (BAD_IMAGE, str(expected.value).removeprefix("array: "))


MEMORY = {  # what is wrong with a frame of 20 rows of 60 bytes, and the beginning of the text
    "pitch-of-less-than-a-row": ({"pitch": 59}, "pitch: 59 bytes"),
    "no-pitch": ({"pitch": 0}, "pitch: 0 bytes"),
    "negative-pitch": ({"pitch": -60}, "pitch: -60 bytes"),
    "a-byte-too-few": ({"bytes": 1199}, "bytes: 1199 are too few for 20 rows of 60 bytes"),
    "no-bytes": ({"bytes": 0}, "bytes: 0 are too few"),
    "negative-bytes": ({"bytes": -1}, "bytes: -1 are too few"),
    "pitch-of-all-memory": ({"pitch": 2**63 - 1}, "bytes: 1200 are too few"),
    "null": ({"data": None}, "data: a null pointer"),
}


@pytest.mark.parametrize(("changes", "text"), MEMORY.values(), ids=MEMORY)
def test_a_frame_that_describes_no_memory_is_refused(changes, text):
    with pytest.raises(UnitError) as refused:
        network_input(np.zeros((20, 20, 3), np.uint8), Preprocessing(size=16), "rgb8", **changes)
    assert refused.value.args[0] == INVALID_ARGUMENT
    assert refused.value.args[1].startswith(text)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("max_pixels", [40_000, 2**31])
def test_network_size(policy, max_pixels):
    rows, columns, text = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(TEXT)
    sides = (0, 1, 2, 15, 16, 17, 191, 500, 3001, 65535, 1_000_000, 2**31 - 1)
    for height, width, size in itertools.product(sides, sides, (16, 192, 4096)):
        preprocessing = Preprocessing(size=size, size_policy=policy, max_pixels=max_pixels)
        try:
            check_pixel_count(height, width, preprocessing)
            expected = network_size(height, width, preprocessing)
        except InputError as error:
            expected = str(error)
        code = units().unit_network_size(
            height, width, size, POLICIES.index(policy), ctypes.c_int64(max_pixels),
            ctypes.byref(rows), ctypes.byref(columns), text,
        )  # fmt: skip
        assert (text.value.decode() if code else (rows.value, columns.value)) == expected
