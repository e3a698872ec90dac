"""The engine's reader of exports, compiled for tests, and what Python makes of the same files."""

import contextlib
import copy
import ctypes
import json
import os
import struct
import types
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p

import numpy as np
import pytest

from sprfast.formats import tensors
from sprfast.formats.manifest import signed
from sprfast.method import folded
from support import ROOT, TESTS
from support.machine import output

CPU = ROOT / "kernels" / "cpu"
NATIVE = TESTS / "kernels" / "cpu" / "native"
CORPUS = TESTS / "data" / "fuzz" / "export"  # small files that fuzzing begins with
UNITS = ("base64", "export_file", "export_metadata", "json", "regular_file", "sha256")  # beside folded.cpp
NARROWING = 32  # of networks whose exports are damaged: 13 kB of weights in place of 13 MB
NOISE = ("gaussian", "antithetic", "signs", "none")
SIZE_POLICIES = ("fit", "stretch", "refuse")


def compile_native(machine, source, path, *flags):
    """Compile a C++ file of `NATIVE` together with the reader."""
    files = [NATIVE / source, NATIVE / "narrow_shapes.cpp", *(CPU / f"{unit}.cpp" for unit in UNITS)]
    given = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{CPU}", *flags]
    output([*machine.compiler, *given, *files, "-o", path])
    return path


def narrow_shapes(network, draws, shapes=folded.shapes):
    """Name and shape of the arrays of a network that is `NARROWING` times narrower."""
    return shapes(types.SimpleNamespace(base_width=network.base_width // NARROWING), draws)


def write_narrow(path, metadata):
    """Write an export of such a network, of random weights."""
    random = np.random.default_rng(0)
    shapes = narrow_shapes(metadata.network, metadata.schedule.draws)
    arrays = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    tensors.write(path, arrays, metadata.to_json(), kind="plan")


class Reader:
    """The C++ reader of exports as compiled into a shared library."""

    def __init__(self, machine, folder):
        self.path = compile_native(machine, "export_reader.cpp", folder / "reader.so", "-O1", "-shared", "-fPIC")
        self._machine, self._library = machine, machine.library(self.path)
        for name, result, *arguments in (
            ("open_export", c_void_p, c_char_p, c_char_p, c_size_t),
            ("close_export", None, c_void_p),
            ("description", c_char_p, c_void_p),
            ("numbers", c_void_p, c_void_p, c_char_p, POINTER(c_int64)),
            ("narrow", None, c_int64),
            ("array_count", c_int64, c_void_p),
            ("read_json", c_int, c_char_p, c_size_t, c_int, c_int, c_char_p, c_size_t),
            ("sha256", None, c_char_p, c_size_t, c_size_t, c_char_p),
            ("base64", c_int64, c_char_p, c_size_t, c_char_p),
        ):
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    @contextlib.contextmanager
    def narrow(self):
        """Both readers take exports of a network that is `NARROWING` times narrower than they
        say.
        """
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folded, "shapes", narrow_shapes)
            self._library.narrow(NARROWING)
            yield
            self._library.narrow(1)

    @contextlib.contextmanager
    def opened(self, path):
        """An `Opened`, or the text of the refusal."""
        message = ctypes.create_string_buffer(4096)
        handle = self._library.open_export(os.fsencode(path), message, len(message))
        if not handle:
            yield message.value.decode()
            return
        try:
            yield Opened(self._machine, self._library, handle)
        finally:
            self._library.close_export(handle)

    def refusal(self, path):
        """Why a file is refused, which must be said in one line after the path; None where it is
        not.
        """
        with self.opened(path) as found:
            if isinstance(found, Opened):
                return None
        code = "2 "  # bad_file
        assert found.startswith(f"{code}{path}: "), found
        text = found[len(code) :]
        assert text.isprintable(), found
        return text

    def json(self, text, depth=100, canonical=False):
        """(whether it is accepted, what is in it or why it is refused)."""
        content = text if isinstance(text, bytes) else text.encode()
        out = ctypes.create_string_buffer(40 * len(content) + 500)
        accepted = self._library.read_json(content, len(content), depth, canonical, out, len(out))
        return bool(accepted), out.value.decode()

    def is_json(self, text, depth):
        """Whether a text is accepted, however deep it is."""
        return bool(self._library.read_json(text.encode(), len(text), depth, False, None, 0))

    def sha256(self, content, piece=2**30):
        """The digest of bytes given in pieces of so many."""
        out = ctypes.create_string_buffer(65)
        self._library.sha256(content, len(content), piece, out)
        return out.value.decode()

    def base64(self, text):
        """The bytes, or None."""
        out = ctypes.create_string_buffer(len(text) + 1)
        count = self._library.base64(text, len(text), out)
        return None if count < 0 else out.raw[:count]


def headed(text):
    """A file with this header and nothing behind it."""
    content = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(content)) + content


class Sample:
    """The parts of a plan, and how they are put together again."""

    def __init__(self, path, work):
        self.path, self.work = path, work
        self.content = path.read_bytes()
        self.reach = 8 + struct.unpack("<Q", self.content[:8])[0]
        self.header, self.data = json.loads(self.content[8 : self.reach]), self.content[self.reach :]
        self.manifest = json.loads(self.header["__metadata__"]["sprfast"])
        del self.manifest["sha256"]

    @property
    def document(self):
        """What the manifest says beside the tensors."""
        return self.manifest["document"]

    def joined(self, text, header=None, data=None):
        """A file with this manifest."""
        header = {**(self.header if header is None else header), "__metadata__": {"sprfast": text}}
        head = json.dumps(header).encode()
        return struct.pack("<Q", len(head)) + head + (self.data if data is None else data)

    def forged(self, edit):
        """The file with header, manifest and data edited and signed anew, as a careful author of a
        bad file would.
        """
        header, manifest, data = copy.deepcopy(self.header), copy.deepcopy(self.manifest), bytearray(self.data)
        edit(header, manifest, data)
        del header["__metadata__"]
        return self.joined(signed(manifest), header, bytes(data))

    def with_document(self, **changes):
        """The file with other metadata."""
        return self.forged(lambda header, manifest, data: manifest["document"].update(changes))


class Opened:
    """An export that the C++ reader has accepted."""

    def __init__(self, machine, library, handle):
        self._machine, self._library, self._handle = machine, library, handle
        self.array_count = library.array_count(handle)
        self.description = library.description(handle).decode()

    def numbers(self, name):
        """An array, `field` or `probe`, flat; None where there is none."""
        count = c_int64()
        pointer = self._library.numbers(self._handle, name.encode(), byref(count))
        return np.array(self._machine.read(pointer, (c_float * count.value)())) if count.value >= 0 else None


def description(metadata):
    """The lines that the C++ reader must have for this metadata."""
    mode, pixels, probe = metadata.scoring_mode, metadata.preprocessing, metadata.probe
    exif = int(pixels.orientation == "exif")
    policy = SIZE_POLICIES.index(pixels.size_policy)
    lines = [
        ("base_width", metadata.network.base_width),
        ("noise", NOISE.index(mode.schedule.noise)),
        *(("level", level.t, level.draws, level.weight) for level in mode.schedule.levels),
        ("preprocessing", pixels.size, policy, pixels.bit_depth, exif, pixels.max_pixels),
        ("noise_seed", metadata.noise_seed),
        *([("field", *mode.error_field.size)] if mode.error_field else []),
        *([("threshold", mode.threshold.value)] if mode.threshold else []),
        *([("tile", mode.tile)] if mode.tile else []),
        *([("window", mode.window)] if mode.window else []),
        *([("map_threshold", mode.map_threshold.value)] if mode.map_threshold else []),
        *([("size", *metadata.size)] if metadata.size else []),
        ("model_sha256", metadata.model_sha256),
        ("probe", *probe.error_map.shape, probe.tolerance),
    ]
    return [[_plain(word) for word in line] for line in lines]


def read_description(text):
    """The lines of the C++ reader in the same form."""
    return [[_plain(word) for word in line.split(" ")] for line in text.splitlines()]


def _plain(word):
    """A number as a number, of whatever spelling."""
    text = str(word)
    if len(text) == 64:
        return text  # a hash
    try:
        return float.fromhex(text) if "0x" in text else float(text)
    except ValueError:
        return text


def same_numbers(one, other):
    """Whether two arrays have the same bits."""
    return one.astype("<f4").tobytes() == np.asarray(other, "<f4").tobytes()


def assert_same(opened, export):
    """That the C++ reader has every value of a Python `Export`, bit for bit."""
    metadata, arrays = export.metadata, export.folded.to_arrays()
    assert read_description(opened.description) == description(metadata)
    assert opened.array_count == len(arrays)
    for name, array in arrays.items():
        assert same_numbers(opened.numbers(name), array), name
    field = metadata.scoring_mode.error_field
    assert opened.numbers("probe").tobytes() == metadata.probe.error_map.tobytes()
    assert (opened.numbers("field") is None) == (field is None)
    assert field is None or same_numbers(opened.numbers("field"), field.expected)
