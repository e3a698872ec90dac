"""Where compiled code runs that tests call: in this process, or by an emulator as compiled for
another processor (`support.emulator`). The fixture `machine` says which.
"""

import contextlib
import ctypes
import os
import shlex
import shutil
import subprocess

import numpy as np
import pytest

from sprfast.kernels.cpu import library


class Native:
    """This process."""

    tolerance = 0  # relative, of what the library's operators compute here and as Python's backend

    path = library._PATH  # of the engine's library
    instruction_set = staticmethod(library.instruction_set)

    @property
    def compiler(self):
        """The words of its command. CXX, CFLAGS and CXXFLAGS are taken from the environment, as by
        setup.py. Skips where there is none.
        """
        command = shlex.split(os.environ.get("CXX", "c++"))
        if not shutil.which(command[0]):
            pytest.skip(f"there is no C++ compiler {command[0]}")
        return [*command, *(flag for name in ("CFLAGS", "CXXFLAGS") for flag in shlex.split(os.environ.get(name, "")))]

    def library(self, path):
        """The functions of a shared library, as of ctypes."""
        return ctypes.CDLL(str(path))

    def operators(self, instruction_set):
        """The address of the engine's operators, None where there are none for it."""
        return library.interface().operators(instruction_set.encode(), b"float32")

    def read(self, address, into):
        """Copy what lies there into a ctypes object, and return it."""
        ctypes.memmove(into, address, ctypes.sizeof(into))
        return into

    def full(self, shape, value, dtype):
        """An array that the functions can read and write."""
        return np.full(shape, value, dtype)

    def placed(self, array):
        """The array, or a copy that the functions can read."""
        return array

    def run(self, program, *arguments):
        """A program to its end: its output. It must succeed and say nothing to stderr."""
        return output([program, *arguments])


NATIVE = Native()
in_this_process = pytest.mark.parametrize("machine", ["native"], indirect=True)
_used = [NATIVE]


def current():
    """The machine in use."""
    return _used[-1]


@contextlib.contextmanager
def using(machine):
    """`machine` is the current one."""
    _used.append(machine)
    yield machine
    _used.pop()


def output(command):
    """Of a program that succeeds and says nothing to stderr."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-5000:]
    return done.stdout
