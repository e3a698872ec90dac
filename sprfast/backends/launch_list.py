"""A pass of the fused network as a list: its launches and convolutions in order, bound to one shape
of images and noise.

Nothing of the network's Python runs again. A call allocates one workspace, where every map between
two launches has its fixed place; a convolution allocates its own result, freed after its last
reader. The list holds no memory of a call, so threads and streams share it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sprfast.kernels.triton.bound import BoundLaunch, View
from sprfast.kernels.triton.launch import Launch, UnsupportedError, capability, multiprocessors, recorded

Convolve = Callable[[Tensor, Tensor], Tensor]

_ALIGNMENT = 256  # bytes, of a map in the workspace
_META = torch.device("meta")
_ALLOCATING = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default)


class LaunchList:
    """A function of tensors, bound.

    Args:
        function: takes a convolution, then tensors like `inputs` on the meta device; computes by
            that convolution and by operators of `sprfast.kernels`, in memory from `torch.empty`;
            returns a new contiguous float32 tensor.
        inputs: an example; every call's must have the same shapes, strides, types and alignment.
        convolve: the convolution of a call, whose result is channels-last.

    Raises:
        launch.UnsupportedError: the kernels do not take these inputs.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], convolve: Convolve) -> None:
        self._device = inputs[0].device
        given = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=_META) for x in inputs]
        gpu = capability(self._device), multiprocessors(self._device)
        with recorded(*gpu) as launches, _Allocations() as allocations:
            steps: list[Any] = launches  # convolutions join them

            def convolution(x: Tensor, weight: Tensor) -> Tensor:
                shape = (x.shape[0], weight.shape[0], *x.shape[2:])
                out = torch.empty(shape, dtype=x.dtype, device=_META, memory_format=torch.channels_last)
                steps.append(_Convolution(x, weight, out))
                return out

            result = function(convolution, *given)
        self._shape = tuple(result.shape)
        convolved = [step.out for step in steps if isinstance(step, _Convolution)]
        self._convolved = len(convolved)
        places = _Places([*given, result, *convolved], allocations.made, self._device)
        self._workspace = places.workspace
        bound = [self._bound(step, places, convolve) for step in steps]
        last = {which: i for i, step in enumerate(bound) for which in step.touched}
        temporary = range(2 + len(given), 2 + len(given) + len(convolved))
        self._steps = [(step, [w for w in temporary if last[w] == i]) for i, step in enumerate(bound)]

    @staticmethod
    def _bound(step: Launch | _Convolution, places: _Places, convolve: Convolve) -> BoundLaunch | _BoundConvolution:
        if isinstance(step, Launch):
            tensors = {name: x for name, x in step.arguments.items() if isinstance(x, Tensor)}
            return BoundLaunch(step, {name: places.view(x) for name, x in tensors.items() if places.hold(x)})
        return _BoundConvolution(convolve, places.view(step.x), step.weight, places.view(step.out).memory)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the function computes, in new memory, launched on the current stream."""
        device = self._device
        result = torch.empty(self._shape, dtype=torch.float32, device=device)
        workspace = torch.empty(self._workspace, dtype=torch.uint8, device=device)
        memory: list[Any] = [workspace, *inputs, result, *[None] * self._convolved]
        addresses = [0 if each is None else each.data_ptr() for each in memory]
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
        for step, finished in self._steps:
            step.run(memory, addresses, stream)
            for which in finished:
                memory[which] = None
        return result


@dataclasses.dataclass(frozen=True, eq=False)
class _Convolution:
    """A recorded convolution: x and out on the meta device, the weight on the real one."""

    x: Tensor
    weight: Tensor
    out: Tensor


class _BoundConvolution:
    """A convolution from one place of a call's memory to another."""

    def __init__(self, convolve: Convolve, x: View, weight: Tensor, out: int) -> None:
        self._convolve, self._x, self._weight, self._out = convolve, x, weight, out
        self.touched = {x.memory, out}  # of the call's tensors

    def run(self, memory: list[Any], addresses: list[int], stream: int | None) -> None:
        out = self._convolve(self._x.of(memory), self._weight)
        if not out.is_contiguous(memory_format=torch.channels_last):
            raise UnsupportedError(f"a convolution's result has strides {out.stride()}, expected channels-last")
        memory[self._out], addresses[self._out] = out, out.data_ptr()


class _Places:
    """Where the recorded tensors lie in a call's memory: in the workspace, which is its first
    tensor, or in one of `others`, which follow.
    """

    def __init__(self, others: Sequence[Tensor], allocated: Sequence[Tensor], device: torch.device) -> None:
        self._recorded = [*others, *allocated]  # kept: a storage is known by its address
        self._device = device
        self._found: dict[int, tuple[int, int]] = {}  # storage: tensor of the call, offset in bytes
        self.workspace = 0  # bytes
        for i, each in enumerate(others):
            self._found[_storage(each)] = i + 1, 0
        for each in allocated:
            if _storage(each) not in self._found:
                self._found[_storage(each)] = 0, self.workspace
                self.workspace += -(-each.untyped_storage().nbytes() // _ALIGNMENT) * _ALIGNMENT

    def hold(self, x: Tensor) -> bool:
        """Whether `x` is memory of a call; else it must be a constant, on the device."""
        held = _storage(x) in self._found
        if not held and x.device != self._device:
            raise RuntimeError(f"a tensor of shape {tuple(x.shape)} on {x.device} is neither memory nor constant")
        return held

    def view(self, x: Tensor) -> View:
        """Where `x` lies."""
        which, offset = self._found[_storage(x)]
        offset += int(x.storage_offset()) * x.dtype.itemsize
        return View(which, offset, x.dtype, tuple(x.shape), x.stride())


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects what is allocated, and refuses to compute: that would be missing from the list."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATING:
            self.made.append(result)
        elif not func.is_view:
            raise RuntimeError(f"{func} outside of a launch: an operator that is bound allocates and launches only")
        return result


def _storage(x: Tensor) -> int:
    """Identity of the memory that `x` is a view of, as long as that is alive."""
    return int(x.untyped_storage()._cdata)
