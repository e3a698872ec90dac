"""include/sprfast.h through ctypes: the structs, and an engine that says what a call gave."""

import ctypes
import itertools
import random
from ctypes import (
    POINTER,
    byref,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)

import numpy as np

from support import machine

VERDICTS = ("ERROR", "PASS", "REJECT")
FORMATS = {("grey", 1): 1, ("grey", 2): 2, ("rgb", 1): 3, ("bgr", 1): 4, ("rgb", 2): 5, ("bgr", 2): 6}
OK, INVALID_ARGUMENT, BAD_FILE, BAD_IMAGE, UNSUPPORTED, OUT_OF_MEMORY, INTERNAL = range(7)


class Struct(ctypes.Structure):
    """One that carries its own size."""

    def __init__(self, **values):
        super().__init__(size=ctypes.sizeof(self), **values)


class Error(Struct):
    _fields_ = (("size", c_uint32), ("code", c_int32), ("text", c_char * 504))


class Options(Struct):
    _fields_ = (("size", c_uint32), ("threads", c_int32), ("instruction_set", c_char_p))


class Info(Struct):
    _fields_ = (
        *((name, c_uint32 if name == "size" else c_int32) for name in ("size", "height", "width", "any_size")),
        *((name, c_int32) for name in ("size_policy", "bit_depth", "draws", "threads")),
        *((name, c_double) for name in ("threshold", "map_threshold", "probe_error")),
        ("model_sha256", c_char * 72),
        ("instruction_set", c_char * 16),
    )


class Frame(Struct):
    _fields_ = (
        ("size", c_uint32),
        ("format", c_int32),
        ("data", c_void_p),
        ("bytes", c_uint64),
        ("height", c_int32),
        ("width", c_int32),
        ("pitch", c_int64),
    )

    @classmethod
    def of(cls, array, order="rgb"):
        """An array (H, W) or (H, W, 3) whose rows may have gaps."""
        array = machine.current().placed(array)
        order = "grey" if array.ndim == 2 else order
        row = array[0].nbytes
        assert array[0].flags.c_contiguous
        height, width = array.shape[:2]
        pitch = array.strides[0] if height > 1 else row
        frame = cls(format=FORMATS[order, array.itemsize], data=array.ctypes.data, bytes=(height - 1) * pitch + row)
        frame.height, frame.width, frame.pitch = height, width, pitch
        frame.array = array  # which must live as long
        return frame


class Result(Struct):
    _fields_ = (
        ("size", c_uint32),
        ("verdict", c_int32),
        ("pred_score", c_double),
        ("skipped", c_double),
        ("code", c_int32),
        ("passes", c_int32),
        ("reason", c_char * 480),
    )


class Maps(Struct):
    _fields_ = (
        ("size", c_uint32),
        ("height", c_int32),
        ("width", c_int32),
        ("reserved", c_int32),
        ("error_map", POINTER(c_float)),
        ("anomaly_map", POINTER(c_float)),
        ("pred_mask", POINTER(c_uint8)),
    )


STRUCTS = {
    "sprfast_error": Error,
    "sprfast_options": Options,
    "sprfast_info": Info,
    "sprfast_frame": Frame,
    "sprfast_result": Result,
    "sprfast_maps": Maps,
}


def padded(array, gap):
    """The same pixels, each row followed by so many bytes of something else."""
    dense = np.ascontiguousarray(array)
    pitch = dense.strides[0] + gap
    memory = machine.current().full(len(dense) * pitch, 0xA5, np.uint8)
    rows = np.ndarray(dense.shape, dense.dtype, memory, strides=(pitch, *dense.strides[1:]))
    rows[...] = dense
    return rows


class RefusedError(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)
        self.code, self.text = code, text


class Library:
    """The functions of a library; a call that is refused raises `RefusedError`."""

    def __init__(self, path):
        self.functions = machine.current().library(path)
        self.functions.sprfast_version.restype = c_char_p
        self.functions.sprfast_close.argtypes = (c_void_p,)

    def call(self, name, *arguments):
        error = Error()
        code = getattr(self.functions, f"sprfast_{name}")(*arguments, byref(error))
        assert code == error.code
        assert bool(code) == bool(error.text)
        if code:
            raise RefusedError(code, error.text.decode())

    def open(self, path, threads=0, instruction_set=None):
        handle, options = c_void_p(), Options(threads=threads)
        if instruction_set is not None:
            name = machine.current().placed(np.frombuffer(instruction_set + b"\0", np.uint8))
            options.instruction_set = name.ctypes.data_as(c_char_p)
        self.call("open", str(path).encode(), byref(options), byref(handle))
        return Engine(self, handle)


class Engine:
    def __init__(self, library, handle):
        self.library, self.handle = library, handle

    def info(self):
        info = Info()
        self.library.call("describe", self.handle, byref(info))
        return info

    def score(self, frame):
        result = Result()
        self.library.call("score", self.handle, byref(frame), byref(result))
        return result

    def score_many(self, frames):
        results = (Result * len(frames))(*(Result() for _ in frames))
        self.library.call("score_many", self.handle, (Frame * len(frames))(*frames), c_size_t(len(frames)), results)
        return list(results)

    def input_size(self, height, width):
        height_there, width_there = c_int32(), c_int32()
        self.library.call("input_size", self.handle, height, width, byref(height_there), byref(width_there))
        return height_there.value, width_there.value

    def maps(self, frame, mask=True):
        """Result, error map, anomaly map, mask."""
        height, width = self.input_size(frame.height, frame.width)
        full = machine.current().full
        errors, anomalies = full((height, width), np.nan, np.float32), full((256, 256), np.nan, np.float32)
        marked, result = full((256, 256), 7, np.uint8), Result()
        maps = Maps(height=height, width=width)
        maps.error_map, maps.anomaly_map = (array.ctypes.data_as(POINTER(c_float)) for array in (errors, anomalies))
        if mask:
            maps.pred_mask = marked.ctypes.data_as(POINTER(c_uint8))
        self.library.call("map", self.handle, byref(frame), byref(result), byref(maps))
        return result, errors, anomalies, marked

    def close(self):
        self.library.functions.sprfast_close(self.handle)
        self.handle = None


def picture(height, width, channels=3, dtype=np.uint8, seed=0):
    """Coarse patches with noise, over the whole range."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((height // 7 + 1, width // 7 + 1, channels)).repeat(7, 0).repeat(7, 1)[:height, :width]
    values = (0.9 * coarse + 0.1 * generator.random((height, width, channels))) * np.iinfo(dtype).max
    return values.astype(dtype) if channels == 3 else values.astype(dtype)[..., 0]


CASE_SIZES = ((32, 32), (33, 47), (20, 61), (150, 32), (3, 5), (97, 250))
CASE_FORMATS = (
    ("grey", np.uint8),
    ("grey", np.uint16),
    *((order, kind) for order in ("rgb", "bgr") for kind in (np.uint8, np.uint16)),
)


def cases(count):
    """So many pictures with the order of their channels: sizes, formats, gaps between rows."""
    kinds = itertools.cycle(itertools.product(CASE_SIZES, CASE_FORMATS))
    for index, (size, (order, dtype)) in enumerate(itertools.islice(kinds, count)):
        array = picture(*size, 1 if order == "grey" else 3, dtype, index)
        yield padded(array, random.Random(index).choice((0, 1, 6, 64))), order
