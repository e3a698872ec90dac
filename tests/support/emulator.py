"""Code compiled for aarch64 and run by an emulator: programs, and functions of shared libraries
that are called as those of ctypes are.
"""

import ctypes
import functools
import os
import shutil
import socket
import struct
import subprocess
import threading
import types
import weakref

import numpy as np

from sprfast.kernels.cpu.library import Interface
from support import ROOT, TESTS, cpu_operators
from support.checkouts import run
from support.machine import output

SYSROOT = "/usr/aarch64-linux-gnu"
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = ["qemu-aarch64", "-L", SYSROOT]
WORDS = 15  # integers and pointers that a function takes, as in calls.cpp


def missing():
    """None where code can be compiled and emulated, else the reason."""
    for command, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR[0], "qemu-user"), ("cmake", "cmake")):
        if shutil.which(command) is None:
            return f"needs {command}: apt install {package}"
    return None


class _Memory:
    """Memory at the same address in this process and in the emulator's."""

    ADDRESS, SIZE = 1 << 36, 1 << 33  # low, where no system puts anything by itself; its pages exist once written

    def __init__(self):
        self.descriptor = os.memfd_create("shared")
        os.truncate(self.descriptor, self.SIZE)
        mmap = ctypes.CDLL(None).mmap
        mmap.restype, mmap.argtypes = ctypes.c_void_p, [*[ctypes.c_size_t] * 2, *[ctypes.c_int] * 3, ctypes.c_size_t]
        assert mmap(self.ADDRESS, self.SIZE, 3, 1, self.descriptor, 0) == self.ADDRESS  # read and write; shared
        self._lock, self._used, self._living = threading.RLock(), 0, 0

    def take(self, size):
        """So many bytes. All come back at once, when none is in use any more."""
        with self._lock:
            address = self.ADDRESS + self._used
            self._used += (size + 64) & -64
            self._living += 1
            assert self._used <= self.SIZE
        taken = (ctypes.c_char * size).from_address(address)
        weakref.finalize(taken, self._give_back)
        return taken

    def _give_back(self):
        with self._lock:
            self._living -= 1
            if not self._living:
                self._used = 0


class Function:
    """A function of the emulated process, by its address."""

    restype = ctypes.c_int

    def __init__(self, emulator, address):
        self._emulator, self._address = emulator, address

    def __call__(self, *given):
        """What is given by reference, and arrays and bytes, are copied there and back."""
        words, numbers, copies = [], [], []
        for each in given:
            known = getattr(each, "_obj", each)
            known = ctypes.create_string_buffer(known) if isinstance(known, bytes) else known
            if isinstance(each, ctypes.c_double):
                numbers.append(each.value)
            elif known is each and not isinstance(each, ctypes.Structure | ctypes.Array):
                words.append(getattr(each, "value", each) or 0)
            else:
                copy = self._emulator.memory.take(ctypes.sizeof(known))
                ctypes.memmove(copy, ctypes.byref(known), len(copy))
                copies.append((known, copy))
                words.append(ctypes.addressof(copy))
        result = self._emulator.call(self._address, words, numbers)
        for known, copy in copies:
            ctypes.memmove(ctypes.byref(known), copy, len(copy))
        if self.restype is ctypes.c_char_p:
            return self._emulator.text(result)
        return self.restype and self.restype(result).value


class Library:
    """A shared library of the emulated process; its functions are attributes."""

    def __init__(self, emulator, path):
        self._emulator = emulator
        self._handle = emulator.function("dlopen")(os.fsencode(path), os.RTLD_NOW)
        assert self._handle, path

    def address(self, name):
        found = self._emulator.symbol(self._handle, name.encode())
        assert found, name
        return found

    def __getattr__(self, name):
        function = Function(self._emulator, self.address(name))
        setattr(self, name, function)
        return function


class Emulator:
    """As `support.machine.Native`."""

    tolerance = 1e-5

    def __init__(self, folder):
        self.compiler, self._folder = [COMPILER], folder
        self.memory, self._connections = _Memory(), threading.local()
        program = self._folder / "calls"
        source = TESTS / "kernels/cpu/native/calls.cpp"
        output([*self.compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", source, "-o", program])
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("")  # to a name that the system makes
        self._listener.listen(64)
        descriptors = self.memory.descriptor, self._listener.fileno()
        given = (descriptors[0], self.memory.ADDRESS, self.memory.SIZE, descriptors[1])
        command, pipe = [*EMULATOR, program, *map(str, given)], subprocess.PIPE
        self._process = subprocess.Popen(command, pass_fds=descriptors, stdin=pipe, stdout=pipe)
        self.symbol = Function(self, int(self._process.stdout.readline()))
        self.symbol.restype = ctypes.c_void_p
        self.path = self._built()  # of the engine's library

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(10) == 0
        self._process.stdout.close()
        self._listener.close()

    def _built(self):
        """The engine's library, as docs/embedding.md says."""
        build = self._folder / "library"
        system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
        compiler = [f"-DCMAKE_CXX_COMPILER={COMPILER}", "-DCMAKE_CXX_FLAGS=-Werror"]
        run(["cmake", "-S", ROOT / "kernels/cpu", "-B", build, *system, *compiler], self._folder)
        run(["cmake", "--build", build, "--parallel", "2"], self._folder)
        return build / "libsprfast.so"

    def instruction_set(self, precision="float32"):
        return "neon"

    def run(self, program, *arguments):
        return output([*EMULATOR, program, *arguments])

    def library(self, path):
        return Library(self, path)

    def full(self, shape, value, dtype):
        array = np.ndarray(shape, dtype, self.memory.take(max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)))
        array.fill(value)
        return array

    def placed(self, array):
        if array.ctypes.data in range(self.memory.ADDRESS, self.memory.ADDRESS + self.memory.SIZE):
            return array
        placed = self.full(array.shape, 0, array.dtype)
        placed[...] = array
        return placed

    def call(self, address, words, numbers):
        """What a function returns, as 64 bits."""
        if not hasattr(self._connections, "socket"):
            self._connections.socket = socket.socket(socket.AF_UNIX)
            self._connections.socket.connect(self._listener.getsockname())
        words = [word % 2**64 for word in (*words, *[0] * (WORDS - len(words)))]
        numbers = (*numbers, *[0.0] * (2 - len(numbers)))
        self._connections.socket.sendall(struct.pack(f"<{1 + WORDS}Q2d", address, *words, *numbers))
        answer = self._connections.socket.recv(8, socket.MSG_WAITALL)
        assert len(answer) == 8, f"the emulated process has ended: {self._process.wait(10)}"
        return struct.unpack("<q", answer)[0]

    def function(self, name):
        """Of the C library."""
        found = Function(self, self.symbol(None, name.encode()))
        found.restype = ctypes.c_void_p
        return found

    def read(self, address, into):
        self.function("memcpy")(ctypes.byref(into), address, ctypes.sizeof(into))
        return into

    def text(self, address):
        return self.read(address, (ctypes.c_char * (self.function("strlen")(address) or 0))()).raw

    def table(self, address, structure):
        """A ctypes structure's functions by their names."""
        read, found = self.read(address, structure()), types.SimpleNamespace()
        for name, kind in structure._fields_:
            if hasattr(kind, "_restype_"):
                at = ctypes.c_void_p.from_buffer(read, getattr(structure, name).offset)
                setattr(found, name, function := Function(self, at.value))
                function.restype = kind._restype_
        return found

    @functools.cached_property
    def interface(self):
        """`sprfast.kernels.cpu.library.interface()` of the engine's library."""
        return self.table(self.library(self.path).address("spr_interface"), Interface)

    def operators(self, instruction_set, precision="float32"):
        return self.interface.operators(instruction_set.encode(), precision.encode())

    def replace_operators(self, monkeypatch, precision="float32"):
        """Take the place of the operators in this process. What `cpu_operators.at` was asked for
        comes back from the next one of them.
        """
        asked = threading.local()

        def at(array):
            assert array.flags.c_contiguous
            placed = self.placed(array)
            vars(asked).setdefault("arrays", []).append((array, placed))
            return placed.ctypes.data

        def operator(function):
            def call(*given):
                result = function(*given)
                for array, placed in vars(asked).pop("arrays", ()):
                    ctypes.memmove(array.ctypes.data, placed.ctypes.data, array.nbytes)
                return result

            return call

        table = self.table(self.operators("neon", precision), cpu_operators.Operators)
        table = types.SimpleNamespace(**{name: operator(function) for name, function in vars(table).items()})
        monkeypatch.setattr(cpu_operators, "table", lambda: table)
        monkeypatch.setattr(cpu_operators, "at", at)
        monkeypatch.setattr(cpu_operators, "interface", lambda: self.interface)
