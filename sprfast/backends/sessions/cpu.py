"""The folded model through our CPU kernels (kernels/cpu/network.h)."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable

import numpy as np

from sprfast.backends.sessions.session import Floats
from sprfast.config import NetworkConfig, Precision
from sprfast.errors import BackendError, InputError
from sprfast.kernels.cpu import library
from sprfast.kernels.cpu.library import Layer
from sprfast.method import folded
from sprfast.method.anomaly_map import MAP_SIZE


def unavailable(precision: Precision = "float32") -> str | None:
    """None where the kernels are built and run here in this precision, else the reason."""
    return library.unavailable(precision)


class CpuSession:
    """A `session.Session` of our kernels.

    An image gives the same bits in any batch and with any number of threads. Calls from several
    threads at once work side by side, each in a workspace of its own; so do those of a forked
    child.

    Args:
        model: of which nothing is kept.
        threads: gives the number of threads of a call.
        precision: of the 3x3 convolutions but the first: their inputs and weights. Everything else
            is float32.

    Raises:
        BackendError: the kernels cannot run here in this precision.
    """

    def __init__(self, model: folded.FoldedModel, threads: Callable[[], int], precision: Precision = "float32") -> None:
        if precision == "float16":
            raise BackendError("backend cpu: computes in float32 or bfloat16, not float16")
        if reason := unavailable(precision):
            raise BackendError(f"backend cpu: {reason}")
        self.draws, self._threads, self._library = model.draws, threads, library.interface()
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in model.to_arrays().items()}
        shapes = folded.shapes(NetworkConfig(base_width=model.base_width), model.draws)
        for name, shape in shapes.items():
            _require(f"model: {name}", arrays.get(name), shape)
        names = (ctypes.c_char_p * len(shapes))(*map(str.encode, shapes))
        addresses = (ctypes.c_void_p * len(shapes))(*(arrays[name].ctypes.data for name in shapes))
        error = ctypes.create_string_buffer(library.ERROR_SIZE)
        sizes = (model.base_width, model.draws, model.window or 0, len(shapes))
        given = (library.operators(precision), *sizes, names, addresses)
        self._network = self._library.open_network(*given, error)
        if not self._network:
            raise MemoryError(error.value.decode())
        # not at exit, when calls may be going on
        weakref.finalize(self, self._library.close_network, self._network).atexit = False

    def maps(self, x: Floats, z: Floats, observe: Callable[[Layer], None] | None = None) -> tuple[Floats, Floats]:
        """Error maps and anomaly maps of images of any size; see `session.Session`.

        Args:
            x, z: as there.
            observe: called after every operator, while what the layer points to is valid; a
                layer has the images of one pass.

        Raises:
            InputError: H or W is less than 16.
            MemoryError: there is not enough.
        """
        images, _, height, width = x.shape
        if min(height, width) < folded.MIN_SIZE:
            raise InputError(f"image: expected at least {folded.MIN_SIZE} pixels on each side, got {height}x{width}")
        _require("image", x, (images, 3, height, width))
        _require("noise", z, (self.draws, 3, height, width))
        errors = np.empty((images, 1, height, width), np.float32)
        anomaly_maps = np.empty((images, 1, MAP_SIZE, MAP_SIZE), np.float32)
        raised: list[BaseException] = []
        text = ctypes.create_string_buffer(library.ERROR_SIZE)
        failed = self._library.maps(
            self._network,
            x.ctypes.data,
            images,
            height,
            width,
            z.ctypes.data,
            errors.ctypes.data,
            anomaly_maps.ctypes.data,
            self._threads(),
            _observer(observe, raised) if observe else library.OBSERVER(),
            text,
        )
        if raised:
            raise raised[0]
        if failed:
            raise MemoryError(text.value.decode())
        return errors, anomaly_maps


def _observer(observe: Callable[[Layer], None], raised: list[BaseException]) -> ctypes._FuncPointer:
    """For C, which cannot pass on what is raised."""

    def call(layer: ctypes._Pointer[Layer]) -> None:
        try:
            if not raised:
                observe(layer.contents)
        except BaseException as error:
            raised.append(error)

    return library.OBSERVER(call)


def _require(name: str, array: Floats | None, shape: tuple[int, ...]) -> None:
    """Refuse what C would read beyond, or as something else."""
    if (
        array is None
        or array.shape != shape
        or array.dtype != np.float32
        or not (array.flags.c_contiguous and array.flags.aligned)
    ):
        given = "missing" if array is None else f"{array.dtype} {array.shape}"
        raise ValueError(f"{name}: is {given}, must be float32 {shape}, C-contiguous")
