"""What the C interface refuses, and in which words."""

import ctypes
import dataclasses
import math
import os
import subprocess
import sys
from ctypes import byref, c_int32, c_size_t, c_void_p

import numpy as np
import pytest

from sprfast.config import Preprocessing
from sprfast.formats import export as export_file
from sprfast.kernels.cpu import library
from support import TESTS
from support import c_interface as c
from support.c_interface import Frame, RefusedError, picture
from support.machine import in_this_process

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=str(library.unavailable()))


@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        ({"data": None}, c.INVALID_ARGUMENT, "null"),
        ({"bytes": 0}, c.INVALID_ARGUMENT, "bytes"),
        ({"bytes": 2**63}, c.INVALID_ARGUMENT, "bytes"),
        ({"height": 0}, c.BAD_IMAGE, "0x32 pixels"),
        ({"height": -1}, c.BAD_IMAGE, "-1x32 pixels"),
        ({"width": -(2**31)}, c.BAD_IMAGE, "32x-2147483648 pixels"),
        ({"height": 2**31 - 1, "width": 2**31 - 1}, c.BAD_IMAGE, "pixels"),
        ({"pitch": 95}, c.INVALID_ARGUMENT, "pitch"),
        ({"pitch": -96}, c.INVALID_ARGUMENT, "pitch"),
        ({"pitch": 2**62}, c.INVALID_ARGUMENT, ""),
        ({"format": 0}, c.INVALID_ARGUMENT, "format"),
        ({"format": 7}, c.INVALID_ARGUMENT, "format"),
    ],
)
def test_a_frame_that_describes_no_memory(engine, values, code, said):
    frame = Frame.of(picture(32, 32))
    for name, value in values.items():
        setattr(frame, name, value)
    result = engine.score(frame)
    assert (result.verdict, result.code) == (0, code)
    assert said in result.reason.decode()
    assert result.reason.startswith(b"frame")
    assert math.isnan(result.pred_score)


def test_a_picture_that_is_refused(written):
    engine, runner = written(preprocessing=Preprocessing(size=32, max_pixels=150_000))
    for array in (picture(400, 400), np.zeros((1, 140_000, 3), np.uint8)):
        expected = runner.predict(array, channel_order="rgb")
        result = engine.score(Frame.of(array))
        assert expected.reason
        assert (result.verdict, result.code) == (0, c.BAD_IMAGE)
        assert result.reason.decode().split(": ", 1)[1] == expected.reason.split(": ", 1)[1]


def test_structs_of_another_version(engine):
    """A later one is longer, and zero where this library knows nothing."""

    class Later(c.Result):
        _fields_ = (("more", c_int32), ("most", c_int32))

    class LaterFrame(c.Frame):
        _fields_ = (("more", c_int32), ("most", c_int32))

    frame = LaterFrame()
    given = Frame.of(picture(32, 32))
    for name, _ in c.Frame._fields_[1:]:
        setattr(frame, name, getattr(given, name))
    result = Later(more=5)
    engine.library.call("score", engine.handle, byref(frame), byref(result))
    assert (result.size, result.more) == (ctypes.sizeof(Later), 0)
    assert result.pred_score == engine.score(given).pred_score
    frame.most = 1
    engine.library.call("score", engine.handle, byref(frame), byref(result))
    assert (result.verdict, result.code) == (0, c.INVALID_ARGUMENT)
    assert b"later version" in result.reason


@pytest.mark.parametrize("size", [0, 4, 39, 42, 4097, 2**32 - 1])
def test_a_wrong_size_of_a_struct(engine, size):
    frame, result = Frame.of(picture(32, 32)), c.Result(verdict=1)
    frame.size = size
    with pytest.raises(RefusedError, match=rf"frame\.size: {size} is not allowed, expected 40"):
        engine.library.call("score", engine.handle, byref(frame), byref(result))
    assert result.verdict == 0  # whoever does not look at the code sees no PASS
    assert b"not scored" in result.reason
    result = c.Result(verdict=1)
    result.size = size
    with pytest.raises(RefusedError, match=rf"result\.size: {size} is not allowed"):
        engine.library.call("score", engine.handle, byref(Frame.of(picture(32, 32))), byref(result))


def test_a_batch_of_structs_of_several_sizes(engine):
    frames = (Frame * 2)(*(Frame.of(picture(32, 32)) for _ in range(2)))
    results = (c.Result * 2)(c.Result(), c.Result())
    frames[1].size += 8
    with pytest.raises(RefusedError, match=r"frame\.size: is not the same"):
        engine.library.call("score_many", engine.handle, frames, c_size_t(2), results)
    assert [result.verdict for result in results] == [0, 0]
    with pytest.raises(RefusedError, match="count"):
        engine.library.call("score_many", engine.handle, frames, c_size_t(2**64 - 1), results)


def test_null_where_it_is_not_allowed(engine):
    frame, result, info, maps = Frame.of(picture(32, 32)), c.Result(verdict=1), c.Info(), c.Maps()
    size, call, handle = byref(c_int32()), engine.library.call, engine.handle
    for name, arguments, said in (
        ("open", (None, None, byref(c_void_p())), "path"),
        ("open", (b"x", None, None), "engine"),
        ("describe", (None, byref(info)), "engine"),
        ("describe", (handle, None), "info"),
        ("input_size", (None, 32, 32, size, size), "engine"),
        ("input_size", (handle, 32, 32, None, size), "input_height"),
        ("score", (None, byref(frame), byref(result)), "engine"),
        ("score", (handle, None, byref(result)), "frame"),
        ("score", (handle, byref(frame), None), "result"),
        ("score_many", (None, None, c_size_t(0), None), "engine"),
        ("map", (None, byref(frame), byref(result), byref(maps)), "engine"),
        ("map", (handle, None, byref(result), byref(maps)), "frame"),
        ("map", (handle, byref(frame), None, byref(maps)), "result"),
        ("map", (handle, byref(frame), byref(result), None), "maps"),
    ):
        with pytest.raises(RefusedError, match=f"{said}.*null") as refused:
            call(name, *arguments)
        assert refused.value.code == c.INVALID_ARGUMENT
    assert result.verdict == 0
    call("score_many", handle, None, c_size_t(0), None)
    call("map", handle, byref(frame), byref(result), byref(maps))  # without any
    assert result.pred_score == engine.score(frame).pred_score
    functions = engine.library.functions
    functions.sprfast_close(None)
    assert functions.sprfast_score(handle, None, byref(result), None) == c.INVALID_ARGUMENT  # without an error's text
    error = c.Error()
    error.size = 3
    assert functions.sprfast_score(handle, byref(frame), byref(result), byref(error)) == c.INVALID_ARGUMENT


def test_maps_of_another_size(machine, engine):
    frame, result, maps = Frame.of(picture(32, 32)), c.Result(), c.Maps(height=32, width=31)
    memory = machine.full(2048, 0, np.float32)
    maps.error_map = memory.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    with pytest.raises(RefusedError, match=r"32x31.*32x32"):
        engine.library.call("map", engine.handle, byref(frame), byref(result), byref(maps))
    maps = c.Maps(height=32, width=32)
    maps.error_map = ctypes.cast(memory.ctypes.data + 2, type(maps.error_map))
    with pytest.raises(RefusedError, match=r"error_map.*aligned"):
        engine.library.call("map", engine.handle, byref(frame), byref(result), byref(maps))
    assert result.verdict == 0
    assert not memory.any()


def test_files_that_are_not_exports(c_library, good, tmp_path):
    text = tmp_path / "text.plan"
    text.write_text("not an export")
    cut = tmp_path / "cut.plan"
    cut.write_bytes(good.read_bytes()[:-4])
    for path in (tmp_path / "missing.plan", tmp_path, text, cut, ""):
        handle = c_void_p(1)
        with pytest.raises(RefusedError) as refused:
            c_library.call("open", str(path).encode(), None, byref(handle))
        assert refused.value.code == c.BAD_FILE
        assert refused.value.text.startswith(f"{path}: ")
        assert not handle.value


def test_an_export_that_does_not_compute_its_probe(c_library, good, tmp_path):
    made = export_file.read(good)
    probe = dataclasses.replace(made.metadata.probe, error_map=made.metadata.probe.error_map * np.float32(1.01))
    path = tmp_path / "wrong.plan"
    export_file.write(path, dataclasses.replace(made, metadata=dataclasses.replace(made.metadata, probe=probe)))
    with pytest.raises(RefusedError, match=r"wrong\.plan: .*probe") as refused:
        c_library.open(path)
    assert refused.value.code == c.INTERNAL


def test_options(machine, c_library, good):
    for threads in (-1, 1025, 2**31 - 1):
        with pytest.raises(RefusedError, match=rf"threads: {threads} "):
            c_library.open(good, threads)
    with pytest.raises(RefusedError, match=rf"'sse9'.*choose from .*{machine.instruction_set()}") as refused:
        c_library.open(good, instruction_set=b"sse9")
    assert refused.value.code == c.UNSUPPORTED


@in_this_process
def test_the_environment_says_what_the_options_do_not(c_library, good, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "nosuch")
    with pytest.raises(RefusedError, match=library.VARIABLE):
        c_library.open(good)
    scores = {}
    for name in library.available():
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        engine = c_library.open(good, instruction_set=name.encode())
        info = engine.info()
        assert (info.instruction_set.decode(), info.threads) == (name, 3)
        scores[name] = engine.score(Frame.of(picture(32, 32))).pred_score
        engine.close()
    assert list(scores.values()) == pytest.approx([scores["generic"]] * len(scores), rel=1e-4)


LITTLE_MEMORY = """
import re, resource, sys
import numpy as np
from support import TESTS
from support import c_interface as c
engine = c.Library(sys.argv[1]).open(sys.argv[2], threads=1)
small = c.Frame.of(np.zeros((32, 32, 3), np.uint8))
expected = engine.score(small).pred_score
size = int(re.search(r"VmSize:\\s*(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 2**27,) * 2)
large = c.Frame.of(np.zeros((16, 16 * 640), np.uint8))
results = engine.score_many([small, large, small])
print([(result.code, result.verdict, result.pred_score == expected) for result in results], results[1].reason)
"""


@pytest.mark.process
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="it takes terabytes of addresses itself")
def test_a_frame_that_is_too_large_for_the_memory(good):
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(library._PATH), str(good)],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(f"[(0, 2, True), ({c.OUT_OF_MEMORY}, 0, False), (0, 2, True)] b'frame: no memory"), (
        done
    )
