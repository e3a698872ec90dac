"""What is asked of CUDA, through the driver, pycuda and cuda-bindings; without a GPU what answers
is simulated, or an error.
"""

import inspect
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from sprfast.backends.sessions import cuda
from sprfast.errors import BackendError, DeviceLostError, OutOfMemoryError
from support import simulated_cuda

NO_GPU = cuda.unavailable()
no_driver = pytest.mark.skipif(NO_GPU is None, reason="there is a driver")
needs_gpu = pytest.mark.skipif(NO_GPU is not None, reason=str(NO_GPU))


DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuGetErrorString(int code, const char **text) { *text = "the kernel module is another one"; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index < COUNT ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Simulated GPU", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1; return 0;
}
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("init", "count", "said"),
    [
        (
            803,
            1,
            "the NVIDIA driver cannot be used: cuInit says the kernel module is another one; check it with nvidia-smi",
        ),
        (0, 0, "needs an NVIDIA GPU, the driver has none: check CUDA_VISIBLE_DEVICES, or run on a machine with one"),
        (0, 1, "None"),
    ],
)
def test_what_the_driver_says_is_passed_on(init, count, said, tmp_path):
    """A library that answers like a driver, in a process of its own."""
    pytest.importorskip("cuda.bindings")
    (tmp_path / "driver.c").write_text(DRIVER)
    macros = [f"-DINIT={init}", f"-DCOUNT={count}"]
    subprocess.run(
        ["cc", *macros, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"], check=True
    )
    program = """
        from sprfast.errors import BackendError, DeviceLostError, OutOfMemoryError
        from sprfast.backends.sessions import cuda
        from sprfast.backends.sessions import tensorrt
        print(cuda.unavailable())
        print(tensorrt.unavailable("tensorrt_rtx"))
        for index in (0, 1):
            try:
                print(cuda.facts(index))
            except BackendError as error:
                print(error)
    """
    lines = simulated_cuda.python(program, LD_LIBRARY_PATH=str(tmp_path)).splitlines()
    assert lines[0] == said
    if said == "None":
        assert "name='Simulated GPU', compute_capability='8.9', driver='12.8" in lines[2]
        assert "cuDeviceGet says" in lines[3]
        pytest.importorskip("tensorrt_rtx")
        assert "tensorrt_rtx is for CUDA 13, the driver here runs up to 12.8" in lines[1]


def test_the_calls_of_cuda_bindings_are_those_of_the_wheel():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    ours = {
        "cudaGetDevice": (),
        "cudaSetDevice": (0,),
        "cudaStreamCreateWithFlags": (runtime.cudaStreamNonBlocking,),
        "cudaHostAlloc": (4, runtime.cudaHostAllocDefault),
        "cudaMalloc": (4,),
        "cudaMemcpyAsync": (0, 0, 4, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, None),
        "cudaStreamSynchronize": (None,),
        "cudaStreamBeginCapture": (None, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal),
        "cudaStreamEndCapture": (None,),
        "cudaGraphInstantiate": (None, 0),
        "cudaGraphDestroy": (None,),
        "cudaGraphLaunch": (None, None),
        "cudaGraphExecDestroy": (None,),
        "cudaFree": (0,),
        "cudaFreeHost": (0,),
        "cudaStreamDestroy": (None,),
        "cudaGetErrorString": (runtime.cudaError_t.cudaErrorInsufficientDriver,),
    }
    called = set(re.findall(r"\b(cuda[A-Z]\w*)\(", inspect.getsource(cuda._BindingsDevice)))
    assert called == ours.keys()
    for name, arguments in ours.items():
        inspect.signature(getattr(runtime, name)).bind(*arguments)
    assert hasattr(runtime.cudaMemcpyKind, "cudaMemcpyDeviceToHost")
    assert runtime.cudaGetErrorString(runtime.cudaError_t.cudaErrorInsufficientDriver)[1].startswith(b"CUDA driver")


@no_driver
def test_an_error_of_the_runtime_is_passed_on():
    pytest.importorskip("cuda.bindings")
    with pytest.raises(
        BackendError, match=r"CUDA: CUDA driver version is insufficient .* \(cudaErrorInsufficientDriver\)"
    ):
        cuda._BindingsDevice(0)


@pytest.fixture
def pycuda(monkeypatch):
    driver, package = simulated_cuda.Pycuda(), types.ModuleType("pycuda")
    package.driver = driver
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(cuda, "_driver", lambda: types.SimpleNamespace(cuCtxPopCurrent_v2=lambda context: 0))
    return driver


def test_through_pycuda_the_primary_context_is_current_only_within_a_call(pycuda):
    device = cuda._PycudaDevice(0)
    assert device.stream == 7
    assert pycuda.stack == []
    with device.current():
        source, target = device.pinned((3, 5)), device.pinned((3, 5))
        source[...] = np.arange(15).reshape(3, 5)
        address = device.allocate(source.nbytes)
        device.upload(address, source)
        device.download(target, address)
        device.synchronise()
        np.testing.assert_array_equal(target, source)
        with pytest.raises(BackendError, match="CUDA: pycuda cannot capture a graph"):
            device.captured(lambda: None)
    assert pycuda.stack == []
    device.close()
    assert (pycuda.stack, pycuda.alive, pycuda.released) == ([], set(), 1)


def test_an_error_of_pycuda_is_passed_on_and_leaves_no_context(pycuda):
    with pytest.raises(BackendError, match="CUDA: cuDeviceGet failed: invalid device ordinal"):
        cuda._PycudaDevice(1)
    device = cuda._PycudaDevice(0)
    with pytest.raises(BackendError, match="CUDA: cuMemAlloc failed: out of memory"), device.current():
        raise simulated_cuda.Pycuda.Error("cuMemAlloc failed: out of memory")
    assert pycuda.stack == []


def test_errors_of_memory_and_device_have_their_types(pycuda):
    """By the texts that CUDA itself has for them."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    lost = (
        "IllegalAddress LaunchFailure LaunchTimeout MisalignedAddress ECCUncorrectable Assert InvalidPc "
        "HardwareStackError"
    )
    kinds = dict.fromkeys(f"{lost} IllegalInstruction".split(), DeviceLostError)
    kinds |= {"MemoryAllocation": OutOfMemoryError, "InvalidValue": BackendError}
    device = cuda._PycudaDevice(0)
    for name, kind in kinds.items():
        text = runtime.cudaGetErrorString(getattr(runtime.cudaError_t, f"cudaError{name}"))[1].decode()
        with pytest.raises(BackendError, match=re.escape(text)) as raised, device.current():
            raise simulated_cuda.Pycuda.Error(f"cuLaunchKernel failed: {text}")
        assert raised.type is kind, text


@needs_gpu
def test_a_device_copies_and_captures():
    device = cuda.open_device(0)
    with device.current():
        source, target = device.pinned((3, 5)), device.pinned((3, 5))
        address = device.allocate(source.nbytes)
        source[...], target[...] = np.arange(15).reshape(3, 5), 0

        def work():
            device.upload(address, source)
            device.download(target, address)

        work()
        device.synchronise()
        np.testing.assert_array_equal(target, source)
        if isinstance(device, cuda._BindingsDevice):
            replay = device.captured(work)
            source += 1
            replay()
            device.synchronise()
            np.testing.assert_array_equal(target, source)
    device.close()
