"""Launches bound once: checked and compiled at their first run, of which only the addresses change
between calls.

A call brings its memory as a list of tensors. A bound launch knows where in them its arguments lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sprfast.kernels.triton.launch import Launch


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor as a place in the memory of a call.

    Attributes:
        memory: which tensor of the call it lies in.
        offset: bytes from the start of that tensor.
        dtype, size, stride: of the view.
    """

    memory: int
    offset: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, memory: Sequence[Tensor]) -> Tensor:
        """This view of a call's memory."""
        whole = memory[self.memory]
        typed = whole if whole.dtype == self.dtype else whole.view(self.dtype)
        offset = typed.storage_offset() + self.offset // self.dtype.itemsize
        return typed.as_strided(self.size, self.stride, offset)


class BoundLaunch:
    """One launch of one kernel on memory that changes between calls.

    The first call compiles, by way of `Launch.run`; every later one fills the addresses into the
    arguments and starts the compiled kernel. In the interpreter each call is like the first.

    Every call's tensors must be aligned as the first one's, since code is compiled for the
    alignment of its pointers. Threads may run it at once.

    Args:
        launch: what was recorded; tensors that no view replaces are constants, kept alive here.
        views: by argument.
    """

    def __init__(self, launch: Launch, views: dict[str, View]) -> None:
        self._launch = launch
        self._views = views
        names = list(launch.kernel.arg_names)
        values = {**launch.arguments, **launch.constants}
        self.touched = {view.memory for view in views.values()}  # of the call's tensors
        self._pointers = [(names.index(name), view.memory, view.offset) for name, view in views.items()]
        self._arguments = [x.data_ptr() if isinstance(x, Tensor) else x for x in (values[name] for name in names)]
        self._start: Callable[..., Any] | None = None

    def run(self, memory: Sequence[Tensor], addresses: Sequence[int], stream: int | None) -> None:
        """Launch.

        Args:
            memory: of the call.
            addresses: `data_ptr()` of each.
            stream: handle of the current CUDA stream; None in the interpreter.

        Raises:
            launch.MissingConfigurationError: as in `Launch.run`, at the first call.
        """
        if self._start is None:
            given = {name: view.of(memory) for name, view in self._views.items()}
            compiled = dataclasses.replace(self._launch, arguments={**self._launch.arguments, **given}).run()
            if compiled is not None:
                grid = self._launch.grid
                self._start = compiled[(*grid, 1, 1)[:3]]
            return
        arguments = self._arguments.copy()
        for position, which, offset in self._pointers:
            arguments[position] = addresses[which] + offset
        self._start(*arguments, stream=stream)
