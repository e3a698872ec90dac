"""The operators as compiled for another processor, run by an emulator; as `cpu_operators.table`."""

import contextlib
import ctypes
import shutil
import struct
import subprocess
import threading

from support import ROOT, TESTS, cpu_operators

CPU = ROOT / "kernels" / "cpu"
UNITS = ("dispatch", "threads")
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def missing():
    """None where the emulated operators can be built and run, else the reason."""
    for command, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(command) is None:
            return f"needs {command}: apt install {package}"
    return None


def build(folder, compiler=COMPILER):
    """The program that runs NEON's operators, static."""
    program = folder / "run_operators"
    sources = [TESTS / "kernels/cpu/native/run_operators.cpp", *(CPU / f"{unit}.cpp" for unit in UNITS)]
    flags = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", f"-I{CPU}", "-pthread", "-static"]
    operators = ["-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-ffp-contract=fast", "-DSPR_SET=neon"]
    for command in (
        [compiler, *flags, *operators, "-c", CPU / "operators.cpp", "-o", folder / "operators.o"],
        [compiler, *flags, *sources, folder / "operators.o", "-o", program],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return program


class Emulated:
    """The operators of a program that `build` has made, by the names of `cpu_operators.Operators`.

    What `cpu_operators.at` was asked for is sent along with each call, and comes back.
    """

    def __init__(self, program, instruction_set="neon"):
        command = [EMULATOR, program, instruction_set]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock, self._asked = threading.Lock(), threading.local()  # for arrays, by their address

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(10) == 0

    def replace(self, monkeypatch):
        """Take the place of the operators in this process."""
        monkeypatch.setattr(cpu_operators, "table", lambda: self)
        monkeypatch.setattr(cpu_operators, "at", self.at)
        monkeypatch.setattr(cpu_operators, "pool", contextlib.nullcontext)

    def at(self, array):
        """`cpu_operators.at`, which remembers the array."""
        assert array.flags.c_contiguous
        vars(self._asked)[str(array.ctypes.data)] = array
        return array.ctypes.data

    def __getattr__(self, name):
        """An operator; of its arguments those by reference are structures, all others are
        integers.
        """
        index = [field for field, _ in cpu_operators.Operators._fields_].index(name)

        def call(*given):
            structures = [getattr(each, "_obj", each) for each in given if not isinstance(each, int)]
            integers = [each for each in given if isinstance(each, int)]
            return self._call(index, integers, b"".join(map(bytes, structures)))

        return call

    def _call(self, index, integers, structure):
        arrays = [(int(address), array) for address, array in vars(self._asked).items()]
        vars(self._asked).clear()
        with self._lock:
            return self._answer(index, integers, structure, arrays)

    def _answer(self, index, integers, structure, arrays):
        pipe, answer = self._process.stdin, self._process.stdout
        pipe.write(struct.pack(f"<{len(integers) + 3}q", index, len(integers), *integers, len(structure)) + structure)
        pipe.write(struct.pack("<q", len(arrays)))
        for address, array in arrays:
            pipe.write(struct.pack("<2q", address, array.nbytes))
            pipe.write(memoryview(array).cast("B"))
        pipe.flush()
        (result,) = struct.unpack("<q", answer.read(8))
        for _, array in arrays:
            ctypes.memmove(array.ctypes.data, answer.read(array.nbytes), array.nbytes)
        return result
