"""CUDA and TensorRT in host memory, for tests where there is no GPU, and processes of their own for
what might crash.
"""

import ctypes
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sprfast.backends.sessions import cuda
from support import ROOT

ort = pytest.importorskip("onnxruntime")


def python(program, **environment):
    """What a process of its own prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={"PATH": "", "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class SimulatedDevice(cuda.Device):
    """Host memory; what is queued is done when it is waited for, so that whoever does not wait
    reads rubbish.
    """

    stream = 7

    def __init__(self, index=0):
        self.queue, self.arrays, self.uploads, self.closed, self.is_current = [], [], 0, False, False
        self.pinned_arrays = []

    def current(self):
        device = self

        class Current:
            def __enter__(self):
                device.is_current = True

            def __exit__(self, *error):
                device.is_current = False

        return Current()

    def pinned(self, shape):
        assert self.is_current
        self.pinned_arrays.append(np.full(shape, np.nan, np.float32))
        return self.pinned_arrays[-1]

    def allocate(self, size):
        assert self.is_current
        self.arrays.append(np.full(size // 4, np.nan, np.float32))
        return self.arrays[-1].ctypes.data

    def _within(self, address, size):
        assert any(a.ctypes.data <= address and address + size <= a.ctypes.data + a.nbytes for a in self.arrays), (
            "outside of its memory"
        )

    def upload(self, address, source):
        assert source.flags.c_contiguous
        self._within(address, source.nbytes)
        self.uploads += 1
        self.queue.append(lambda: ctypes.memmove(address, source.ctypes.data, source.nbytes))

    def download(self, target, address):
        assert target.flags.c_contiguous
        self._within(address, target.nbytes)
        self.queue.append(lambda: ctypes.memmove(target.ctypes.data, address, target.nbytes))

    def synchronise(self):
        for work in self.queue:
            work()
        self.queue = []

    def captured(self, work):
        assert not self.queue
        work()
        recorded, self.queue = self.queue, []
        return lambda: self.queue.extend(recorded)

    def close(self):
        assert not self.closed
        self.closed = True


class SimulatedContext:
    """An execution context whose network onnxruntime computes. What was captured runs as long as
    the shape is that of its capture.
    """

    def __init__(self, engine):
        self.engine, self.addresses, self.shape, self.profile, self.features = engine, {}, None, None, None

    def set_optimization_profile_async(self, profile, stream):
        assert stream == SimulatedDevice.stream
        self.profile = profile
        return True

    def set_device_memory(self, address, size):
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.features = address, size

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        smallest, _, largest = self.engine.profiles[self.profile]
        self.shape = shape
        return name == "image" and smallest <= shape[0] <= largest

    def execute_async_v3(self, stream):
        shapes = {"image": self.shape, "noise": self.engine.noise_shape}
        device, addresses, outputs = (
            self.engine.device,
            dict(self.addresses),
            ("error_map", "anomaly_map", "pred_score"),
        )

        def run():
            assert self.shape == shapes["image"], "set to another shape since"
            device._within(*self.features)
            inputs = {name: self._at(addresses[name], shape).copy() for name, shape in shapes.items()}
            for name, value in zip(outputs, self.engine.network.run(outputs, inputs), strict=True):
                device._within(addresses[name], value.nbytes)
                self._at(addresses[name], value.shape)[...] = value

        device.queue.append(run)
        self.engine.batches.append(self.shape[0])
        return True

    @staticmethod
    def _at(address, shape):
        return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(address)).reshape(shape)


class SimulatedEngine:
    def __init__(self, graph, device, noise_shape, profiles):
        self.network = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.device, self.noise_shape, self.profiles = device, noise_shape, profiles
        self.batches, self.contexts = [], []

    def get_device_memory_size_for_profile_v2(self, profile):
        return 1024 * self.profiles[profile][-1]

    def create_execution_context(self, strategy):
        assert strategy.name == "USER_MANAGED"
        self.contexts.append(SimulatedContext(self))
        return self.contexts[-1]


class Pycuda:
    """Of pycuda.driver what we call, with the rules of its sources: contexts are a stack, and all
    but `init` needs a current one.
    """

    class Error(Exception):
        pass

    def __init__(self):
        driver, self.stack, self.alive, self.released = self, [], set(), 0

        class Allocation:
            def __init__(self, size):
                assert driver.stack
                self.memory = np.zeros(size, np.uint8)
                driver.alive.add(self)

            def __int__(self):
                return self.memory.ctypes.data

            def free(self):
                assert driver.stack
                driver.alive.remove(self)

        class Array(np.ndarray):
            base = None

        def pagelocked_empty(shape, dtype):
            array = np.zeros(shape, dtype).view(Array)
            array.base = Allocation(array.nbytes)
            return array

        class Context:
            def push(self):
                driver.stack.append(self)

            def detach(self):
                assert driver.stack.pop() is self
                driver.released += 1

            @staticmethod
            def pop():
                driver.stack.pop()

            @staticmethod
            def get_current():
                return driver.stack[-1] if driver.stack else None

        class Device:
            def __init__(self, index):
                if index:
                    raise driver.Error("cuDeviceGet failed: invalid device ordinal")

            def retain_primary_context(self):
                return Context()

        class Stream:
            handle = 7

            def __init__(self, flags):
                assert driver.stack
                assert flags == 1

            def synchronize(self):
                assert driver.stack

        self.init, self.mem_alloc, self.pagelocked_empty = lambda: None, Allocation, pagelocked_empty
        self.Context, self.Device, self.Stream = Context, Device, Stream

    def memcpy_htod_async(self, address, source, stream):
        assert self.stack
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, target, address, stream):
        assert self.stack
        ctypes.memmove(target.ctypes.data, address, target.nbytes)
