"""Arrays, buffers and objects of every kind as frames: refused in one line, or exactly the pixels
that they hold; never written to.
"""

import ctypes
import dataclasses
import math
import struct

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from sprfast.config import Preprocessing
from sprfast.data.images import load_image
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.line.frames import FrameFormat
from sprfast.method.threshold import Verdict
from support.fuzzing import VALUES, attempt, fuzzed

SIZE = 16
SMALL = Preprocessing(size=SIZE, size_policy="stretch")
ACCEPTED = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float32))
ORDERS = st.one_of(
    st.sampled_from([None, "rgb", "bgr", "grey", "RGB", "", 0, np.array(["rgb", "bgr"]), np.str_("rgb"), ["rgb"]]),
    VALUES,
)

DTYPES = st.one_of(
    st.sampled_from(
        [
            *ACCEPTED,
            *map(np.dtype, (">u2", ">f4", "f2", "f8", "c8", "?", "O", "i1", "i4", "u4", "S2", "U1", "V3", "M8[s]")),
        ]
    ),
    nps.array_dtypes(max_size=2),
)
SHAPES = st.one_of(
    nps.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    st.sampled_from([(SIZE, SIZE), (SIZE, SIZE, 1), (SIZE, SIZE, 3), (1, 1), (1, 1, 3), (3, SIZE, SIZE), (1, 200, 3)]),
)
VALUES_IN_RANGE = st.floats(0, 1, width=32)


class Marked(np.ndarray):
    """A subclass, as libraries of cameras have them."""


VIEWS = {
    "as it is": lambda array: array,
    "backwards": lambda array: array[::-1] if array.ndim else array,
    "mirrored": lambda array: array[:, ::-1] if array.ndim > 1 else array,
    "every second": lambda array: np.repeat(array, 2, 0)[::2] if array.ndim else array,
    "Fortran": np.asfortranarray,
    "expanded": lambda array: np.broadcast_to(array[:1], array.shape) if array.ndim else array,
    "subclass": lambda array: array.view(Marked),
    "masked": lambda array: np.ma.masked_array(array) if array.dtype in ACCEPTED else array,
    "read-only": lambda array: (
        np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
        if array.size and not array.dtype.hasobject
        else array
    ),
}


@st.composite
def arrays(draw):
    """An array of any type and shape, and any view of it."""
    dtype, shape = draw(DTYPES), draw(SHAPES)
    if dtype.hasobject:
        array = np.zeros(shape, dtype)
        if dtype.kind == "O":
            array.fill(draw(VALUES))
    elif dtype == np.float32 and draw(st.booleans()):
        array = np.full(shape, draw(VALUES_IN_RANGE), dtype)
        if array.size and draw(st.booleans()):
            array.reshape(-1)[draw(st.integers(0, array.size - 1))] = draw(st.floats(width=32))
    else:
        seed = draw(st.integers(0, 2**32 - 1))
        size = max(1, math.prod(shape) * dtype.itemsize)
        array = np.resize(np.frombuffer(np.random.RandomState(seed).bytes(size), np.uint8), size)[
            : math.prod(shape) * dtype.itemsize
        ]
        array = array.copy().view(dtype).reshape(shape) if array.size else np.zeros(shape, dtype)
    name = draw(st.sampled_from(sorted(VIEWS)))
    return VIEWS[name](array)


OBJECTS = st.one_of(
    VALUES,
    st.binary(max_size=8),
    st.binary(max_size=8).map(bytearray),
    st.sampled_from(
        [
            int,
            len,
            object(),
            {1},
            1j,
            range(3),
            memoryview(b"abc"),
            np.float32(1),
            np.datetime64("now"),
            torch.float32,
            SMALL,
        ]
    ),
    st.sampled_from(
        [
            PIL.Image.new(mode, size)
            for mode in ("RGB", "F", "I", "CMYK", "P", "1")
            for size in ((1, 1), (0, 3), (16, 16))
        ]
    ),
    st.sampled_from(
        [
            torch.zeros(3, SIZE, SIZE, dtype=dtype)
            for dtype in (torch.uint8, torch.bool, torch.float16, torch.complex64, torch.float64)
        ]
    ),
    st.sampled_from([torch.full((3, SIZE, SIZE), value) for value in (math.nan, math.inf, 2.0, 0.5)]),
)


@pytest.fixture(scope="module")
def engine(small_model):
    return Engine(dataclasses.replace(small_model, preprocessing=SMALL), "eager", "cpu")


def state(array):
    """What an array holds, for a comparison."""
    return array.dtype, array.shape, array.strides, repr(array) if array.dtype.hasobject else array.tobytes()


def slow_pixels(array, order):
    """The contract for a picture of the network's size, value by value."""
    values = np.atleast_3d(np.asarray(array))
    top = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}[values.dtype]
    pixels = np.empty((3, *values.shape[:2]), np.float32)
    for channel in range(3):
        source = 0 if values.shape[2] == 1 else 2 - channel if order == "bgr" else channel
        for row in range(values.shape[0]):
            for column in range(values.shape[1]):
                pixels[channel, row, column] = np.float32(values[row, column, source]) / np.float32(top) * 2 - 1
    return pixels


@fuzzed(400, array=arrays(), order=ORDERS)
def test_an_array_is_refused_or_its_pixels(array, order):
    before = state(array)
    image = attempt(lambda: load_image(array, SMALL, channel_order=order), "array: ", InputError)
    if image is not None:
        assert array.dtype in ACCEPTED
        assert array.shape[2:] in ((), (1,), (3,))
        assert array.shape[2:] != (3,) or order in ("rgb", "bgr")
        assert not isinstance(array, np.ma.MaskedArray)
        assert not np.shares_memory(image.pixels, array)
        assert (np.abs(image.pixels) <= 1).all()
        if array.shape[:2] == (SIZE, SIZE):
            np.testing.assert_array_equal(image.pixels, slow_pixels(array, order))
    assert state(array) == before


@fuzzed(150, array=arrays(), order=ORDERS)
def test_an_engine_answers_for_any_array_and_passes_only_numbers(engine, array, order):
    result = engine.predict(array, channel_order=order)
    assert result.verdict is Verdict.ERROR or math.isfinite(result.pred_score)
    if result.verdict is not Verdict.ERROR and array.dtype == np.float32:
        assert np.isfinite(array).all()
    assert (result.reason is None) == (result.verdict is not Verdict.ERROR)


@fuzzed(200, source=OBJECTS, order=ORDERS)
def test_an_engine_answers_for_any_object(engine, source, order):
    results = engine.predict(source, channel_order=order)
    for result in results if isinstance(source, list | tuple) else [results]:
        assert result.verdict is Verdict.ERROR or math.isfinite(result.pred_score)
        assert result.reason is None or len(result.reason.splitlines()) == 1


def test_an_array_in_a_file_is_taken_and_never_written(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    content.tofile(tmp_path / "frame")
    for mode in ("r", "r+", "c"):
        mapped = np.memmap(tmp_path / "frame", np.uint8, mode, shape=content.shape)
        np.testing.assert_array_equal(
            load_image(mapped, SMALL, channel_order="bgr").pixels, slow_pixels(content, "bgr")
        )
    assert (tmp_path / "frame").read_bytes() == content.tobytes()


FIELDS = {
    "height": st.integers(1, 6) | VALUES,
    "width": st.integers(1, 6) | VALUES,
    "channel_order": st.sampled_from(["rgb", "bgr", "grey"]) | ORDERS,
    "dtype": st.sampled_from(["uint8", "uint16", "float32"]) | VALUES,
    "row_bytes": st.none() | st.integers(0, 100) | VALUES,
}


@fuzzed(400, fields=st.fixed_dictionaries(FIELDS))
def test_a_frame_format_is_refused_or_holds_its_promises(fields):
    form = attempt(lambda: FrameFormat(**fields), "FrameFormat.", InputError)
    if form is None:
        return
    assert type(form.height) is type(form.width) is int
    assert form.height >= 1
    assert form.width >= 1
    assert form.row_bytes is None or form.row_bytes >= form.width * form.channels * np.dtype(form.dtype).itemsize


@pytest.mark.parametrize("name", ["height", "width", "row_bytes"])
@pytest.mark.parametrize(
    "value", [10**5000, -(10**5000), np.arange(12).reshape(4, 3), True, 2.0, np.int64(4)], ids=range(6)
)
def test_a_number_that_no_camera_has_is_refused_in_one_line(name, value):
    with pytest.raises(InputError, match=f"FrameFormat.{name}") as caught:
        FrameFormat(**{"height": 2, "width": 2, "channel_order": "grey", name: value})
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


@st.composite
def formats(draw):
    """A small format with or without padding."""
    form = FrameFormat(
        *(draw(st.integers(1, 4)) for _ in range(2)),
        draw(st.sampled_from(["rgb", "bgr", "grey"])),
        draw(FIELDS["dtype"].filter(lambda name: name in ("uint8", "uint16", "float32"))),
    )
    packed = form.width * form.channels * np.dtype(form.dtype).itemsize
    return FrameFormat(
        form.height, form.width, form.channel_order, form.dtype, draw(st.none() | st.integers(packed, packed + 5))
    )


@fuzzed(300, form=formats(), data=st.data())
def test_a_buffer_is_refused_or_its_pixels(form, data):
    packed = form.width * form.channels * np.dtype(form.dtype).itemsize
    row = form.row_bytes or packed
    whole, least = form.height * row, (form.height - 1) * row + packed
    length = data.draw(st.sampled_from([whole, whole, least, least - 1, whole + 1, 0]))
    content = np.random.RandomState(data.draw(st.integers(0, 99))).bytes(length)
    kind = data.draw(st.sampled_from([bytes, bytearray, memoryview]))
    given_frame = kind(content)
    got = attempt(lambda: form.view(given_frame), "frame: ", InputError)
    assert (got is not None) == (least <= length <= whole)
    if got is None:
        return
    code = {"uint8": "B", "uint16": "H", "float32": "f"}[form.dtype]
    pixel = struct.Struct(f"={form.channels}{code}")
    expected = [
        [pixel.unpack_from(content, r * row + c * pixel.size) for c in range(form.width)] for r in range(form.height)
    ]
    np.testing.assert_array_equal(got.reshape(form.height, form.width, form.channels), np.array(expected, form.dtype))
    assert np.shares_memory(got, np.frombuffer(given_frame, np.uint8))


@fuzzed(300, form=formats(), frame=arrays() | OBJECTS)
def test_anything_as_a_frame_is_refused_or_has_the_form(form, frame):
    got = attempt(lambda: form.view(frame), "frame: ", InputError)
    if got is None:
        return
    assert got.dtype == np.dtype(form.dtype)
    assert got.shape[:2] == (form.height, form.width)
    assert math.prod(got.shape[2:]) == form.channels


@pytest.mark.parametrize("element", ["c_ubyte", "c_uint16", "c_float"])
def test_memory_of_a_camera_s_library_is_taken(element):
    """ctypes says how bytes are ordered where they are alone, which memoryview.cast refuses."""
    dtype = {"c_ubyte": "uint8", "c_uint16": "uint16", "c_float": "float32"}[element]
    memory = (getattr(ctypes, element) * 6)(*range(6))
    for frame in (memory, memoryview(memory)):
        assert FrameFormat(2, 3, "grey", dtype).view(frame).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("form", [">u2", "i2", "f2", "V2"])
def test_a_buffer_of_another_type_or_byte_order_is_not_taken_for_what_it_is_not(form):
    with pytest.raises(InputError, match="expected contiguous bytes or native uint16"):
        FrameFormat(2, 2, "grey", "uint16").view(memoryview(np.zeros((2, 2), form)))
