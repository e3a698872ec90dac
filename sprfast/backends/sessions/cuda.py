"""The few CUDA calls that a runner needs, through pycuda where that is installed, else through
cuda-bindings.

What can be asked of the driver alone is asked through ctypes, so that it is known whether CUDA runs
before any library is imported that could bring the process down without it.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sprfast.backends.sessions.session import Floats
from sprfast.errors import BackendError, DeviceLostError, OutOfMemoryError

DRIVER = "libcuda.so.1"
INSTALL = "pip install 'sprfast[tensorrt]' or 'sprfast[tensorrt-rtx]', or pip install pycuda"

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_LOST = re.compile(  # in CUDA's texts of the errors that end a context
    "illegal|misaligned|unspecified launch failure|timed out|uncorrectable|device-side assert|invalid program "
    "counter|hardware stack"
)
_RELEASE = Path("/sys/module/nvidia/version")  # of the kernel module, such as 580.95.05


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a plan that was built on a device depends on."""

    name: str
    compute_capability: str  # such as "8.9"
    driver: str  # newest CUDA that it runs, and its release where the system tells: "13.0 (580.95.05)"


def unavailable() -> str | None:
    """None where a driver, a device and a library to reach them are here, else the reason and what
    to install; never ends the process.
    """
    try:
        _driver()
    except BackendError as error:
        return str(error)
    if not (_installed("pycuda") or _installed("cuda.bindings")):
        return f"needs pycuda or cuda-bindings, neither is installed here: run {INSTALL}"
    return None


def facts(index: int) -> Facts:
    """What the driver says of a device.

    Raises:
        BackendError: there is no driver, or no such device.
    """
    library = _driver()
    device, name, version = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    _asked(library, "cuDeviceGet", ctypes.byref(device), index)
    _asked(library, "cuDeviceGetName", name, len(name), device)
    _asked(library, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
    _asked(library, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
    _asked(library, "cuDriverGetVersion", ctypes.byref(version))
    newest = f"{version.value // 1000}.{version.value % 1000 // 10}"
    try:
        driver = f"{newest} ({_RELEASE.read_text().strip()})"
    except OSError:  # such as under WSL
        driver = newest
    return Facts(name.value.decode(errors="replace"), f"{major.value}.{minor.value}", driver)


class Device(abc.ABC):
    """A device's primary context, which PyTorch and TensorRT use too, and one stream; any thread
    may call, one at a time.

    All but `close` is called within `current`.
    """

    stream: int  # its handle
    _owned: contextlib.ExitStack  # what releases memory, graphs and the stream, the last one first

    @abc.abstractmethod
    def __init__(self, index: int) -> None: ...

    @abc.abstractmethod
    def current(self) -> contextlib.AbstractContextManager[None]:
        """Makes the device the thread's own, and what was so before again at the end."""

    @abc.abstractmethod
    def pinned(self, shape: tuple[int, ...]) -> Floats:
        """A float32 array in page-locked memory, which lives until `close`; undefined values."""

    @abc.abstractmethod
    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device, which live until `close`."""

    @abc.abstractmethod
    def upload(self, address: int, source: Floats) -> None:
        """Queue a copy to the device; `source` is pinned and contiguous."""

    @abc.abstractmethod
    def download(self, target: Floats, address: int) -> None:
        """Queue a copy from the device; `target` is pinned and contiguous."""

    @abc.abstractmethod
    def synchronise(self) -> None:
        """Wait for all that was queued."""

    @abc.abstractmethod
    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` queues as a graph; calling the result queues all of it. `work` must have run
        once before.

        Raises:
            BackendError: the library cannot capture, or something in `work` cannot be captured.
        """

    def close(self) -> None:
        """Release all memory, graphs, the stream and the context."""
        with self.current():
            self._owned.close()


def open_device(index: int) -> Device:
    """The device with this number, through the library that is installed.

    Raises:
        BackendError: CUDA cannot run here, or there is no such device.
    """
    if reason := unavailable():
        raise BackendError(f"CUDA: {reason}")
    library: type[Device] = _PycudaDevice if _installed("pycuda") else _BindingsDevice
    try:
        return library(index)
    except ImportError as error:
        raise BackendError(
            f"CUDA: what is installed to reach the device does not load ({error}): run {INSTALL}"
        ) from error


class _PycudaDevice(Device):
    """A device through pycuda, which wraps the driver."""

    def __init__(self, index: int) -> None:
        import pycuda.driver

        self._cuda, self._owned = pycuda.driver, contextlib.ExitStack()
        with self._errors():
            self._cuda.init()
            self._context = self._cuda.Device(index).retain_primary_context()
        try:
            with self.current():
                self._stream = self._cuda.Stream(1)  # CU_STREAM_NON_BLOCKING
        except BackendError:
            self._release()
            raise
        self.stream = self._stream.handle

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        with self._errors():
            self._context.push()
        try:
            with self._errors():
                yield
        finally:
            self._cuda.Context.pop()

    def pinned(self, shape: tuple[int, ...]) -> Floats:
        array: Any = self._cuda.pagelocked_empty(shape, np.float32)
        self._owned.callback(array.base.free)
        return array  # type: ignore[no-any-return]

    def allocate(self, size: int) -> int:
        buffer = self._cuda.mem_alloc(size)
        self._owned.callback(buffer.free)
        return int(buffer)

    def upload(self, address: int, source: Floats) -> None:
        self._cuda.memcpy_htod_async(address, source, self._stream)

    def download(self, target: Floats, address: int) -> None:
        self._cuda.memcpy_dtoh_async(target, address, self._stream)

    def synchronise(self) -> None:
        self._stream.synchronize()

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        raise BackendError(
            "CUDA: pycuda cannot capture a graph; remove it and run pip install cuda-bindings, or do without capture"
        )

    def close(self) -> None:
        super().close()
        with self.current():
            del self._stream
        self._release()

    def _release(self) -> None:
        """Give the context back; pycuda wants it current, and leaves it on the driver's stack."""
        alone = self._cuda.Context.get_current() is None
        self._context.push()
        self._context.detach()
        if alone:
            _asked(_driver(), "cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """pycuda's errors as BackendError; they begin with the name of the call."""
        try:
            yield
        except self._cuda.Error as error:
            raise _failure(str(error)) from error


class _BindingsDevice(Device):
    """A device through cuda-bindings, which wraps the CUDA runtime."""

    def __init__(self, index: int) -> None:
        from cuda.bindings import runtime

        self._cuda, self._index, self._owned = runtime, index, contextlib.ExitStack()
        with self.current():
            self._stream = self._done(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self._owned.callback(lambda: self._done(runtime.cudaStreamDestroy(self._stream)))
        self.stream = int(self._stream)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        before = self._done(self._cuda.cudaGetDevice())
        self._done(self._cuda.cudaSetDevice(self._index))
        try:
            yield
        finally:
            self._done(self._cuda.cudaSetDevice(before))

    def pinned(self, shape: tuple[int, ...]) -> Floats:
        count = math.prod(shape)
        address = int(self._done(self._cuda.cudaHostAlloc(4 * count, self._cuda.cudaHostAllocDefault)))
        self._owned.callback(lambda: self._done(self._cuda.cudaFreeHost(address)))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)

    def allocate(self, size: int) -> int:
        address = int(self._done(self._cuda.cudaMalloc(size)))
        self._owned.callback(lambda: self._done(self._cuda.cudaFree(address)))
        return address

    def upload(self, address: int, source: Floats) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._done(self._cuda.cudaMemcpyAsync(address, source.ctypes.data, source.nbytes, kind, self._stream))

    def download(self, target: Floats, address: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._done(self._cuda.cudaMemcpyAsync(target.ctypes.data, address, target.nbytes, kind, self._stream))

    def synchronise(self) -> None:
        self._done(self._cuda.cudaStreamSynchronize(self._stream))

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        cuda, stream, done = self._cuda, self._stream, self._done
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads may use the device meanwhile
        done(cuda.cudaStreamBeginCapture(stream, mode))
        try:
            work()
        except BaseException:
            cuda.cudaStreamEndCapture(stream)  # which fails too, and leaves the stream usable
            raise
        graph = done(cuda.cudaStreamEndCapture(stream))
        executable = done(cuda.cudaGraphInstantiate(graph, 0))
        self._owned.callback(lambda: done(cuda.cudaGraphExecDestroy(executable)))
        done(cuda.cudaGraphDestroy(graph))
        return lambda: done(cuda.cudaGraphLaunch(executable, stream))

    def _done(self, result: tuple[Any, ...]) -> Any:
        """What a call returned beside its error, which is raised."""
        error, *values = result
        if error != self._cuda.cudaError_t.cudaSuccess:
            _, text = self._cuda.cudaGetErrorString(error)
            raise _failure(f"{text.decode(errors='replace')} ({error.name})")
        return values[0] if values else None


def _failure(text: str) -> BackendError:
    """The error of a call, by CUDA's text, which says whether the device is lost."""
    if "out of memory" in text:
        return OutOfMemoryError(f"CUDA: {text}")
    if _LOST.search(text):
        return DeviceLostError(f"CUDA: {text}; the device cannot be used by this process any more, start a new one")
    return BackendError(f"CUDA: {text}")


def _driver() -> ctypes.CDLL:
    """The driver's library, initialised, with at least one device."""
    try:
        library = ctypes.CDLL(DRIVER)
        count = ctypes.c_int()
        _asked(library, "cuInit", 0)
        _asked(library, "cuDeviceGetCount", ctypes.byref(count))
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"needs an NVIDIA GPU and its driver, none is installed here ({error}): install NVIDIA's driver"
        ) from error
    if count.value < 1:
        raise BackendError(
            "needs an NVIDIA GPU, the driver has none: check CUDA_VISIBLE_DEVICES, or run on a machine with one"
        )
    return library


def _asked(library: ctypes.CDLL, call: str, *arguments: Any) -> None:
    """Call the driver; its error as BackendError."""
    if code := getattr(library, call)(*arguments):
        text = ctypes.c_char_p()
        known = library.cuGetErrorString(code, ctypes.byref(text)) == 0 and text.value
        reason = text.value.decode(errors="replace") if known and text.value else f"error {code}"
        raise BackendError(f"the NVIDIA driver cannot be used: {call} says {reason}; check it with nvidia-smi")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
