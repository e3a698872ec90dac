"""A process among others: what torchrun's processes exchange, and one sentence where some of them
are gone.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

# Here, since its functions keep the group that stands when they are defined: with it the threads of
# Gloo would outlive the interpreter, and now and then end the process by std::terminate.
import torch.distributed.nn.functional
from torch.nn.parallel import DistributedDataParallel

from sprfast.errors import CheckFailedError, InputError
from sprfast.system import torchrun

T = TypeVar("T")
LONGEST = 86400.0  # seconds of a timeout


class ProcessGroup:
    """This process among those that torchrun started; alone, every method does nothing.

    What goes through here is on the CPU and over Gloo; NCCL has the gradients of CUDA devices only.

    Args:
        timeout: seconds that this process waits for the others in any one exchange, from 1 to
            `LONGEST`.

    Raises:
        InputError: the timeout is out of range, or the environment is not torchrun's.
        CheckFailedError: the others did not come in time.
    """

    def __init__(self, timeout: float) -> None:
        if not 1.0 <= timeout <= LONGEST:
            raise InputError(f"process timeout: {timeout:g} s is not allowed, only 1 s to a day")
        self.rank, self.world_size, self._timeout = torchrun.rank(), torchrun.world_size(), timeout
        if self.world_size > 1 and not dist.is_initialized():
            with self.exchange("their start"):
                _start(self.rank, timeout)

    def share(self, batch_size: int) -> slice:
        """This process's part of a batch.

        Raises:
            InputError: the batch cannot be shared equally.
        """
        if batch_size % self.world_size:
            raise InputError(f"batch_size: {batch_size} cannot be shared equally among {self.world_size} processes")
        each = batch_size // self.world_size
        return slice(self.rank * each, (self.rank + 1) * each)

    @contextlib.contextmanager
    def exchange(self, what: str) -> Iterator[None]:
        """Around anything that waits for other processes.

        Args:
            what: they are waited for, for the sentence.

        Raises:
            CheckFailedError: a process died, hangs or never came.
        """
        started = time.monotonic()
        try:
            yield
        except (RuntimeError, OSError) as error:
            if self.world_size == 1 or not _is_of_processes(error):
                raise
            waited = time.monotonic() - started
            raise CheckFailedError(
                f"process {self.rank} of {self.world_size}: waited {waited:.1f} s for {what}, and another process is "
                f"gone or hangs ({_reason(error)}): that one's output has the cause; start all of them again, a "
                f"training with --resume"
            ) from error

    def wrap(self, network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The network with its gradients averaged over the processes; call its backward within
        `exchange`.
        """
        if self.world_size == 1:
            return network
        with self.exchange("a comparison of the networks"):
            if device.type == "cuda":
                return DistributedDataParallel(network, device_ids=[device.index], process_group=_nccl(self._timeout))
            return DistributedDataParallel(network)

    def agree(self, fraction: float, stop: signal.Signals | None) -> tuple[float, signal.Signals | None]:
        """The furthest fraction and any process's stop signal, so that all stop at the same
        step.
        """
        if self.world_size == 1:
            return fraction, stop
        shared = torch.tensor([fraction, float(stop or 0)], dtype=torch.float64)
        with self.exchange("the next step"):
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared[0].item(), signal.Signals(int(shared[1])) if shared[1] else None

    def mean(self, value: torch.Tensor) -> float:
        """Mean over the processes of a number on any device."""
        if self.world_size == 1:
            return value.item()
        with self.exchange("the loss"):
            if value.is_cuda:
                _finish(self._timeout)
            shared = value.to("cpu", torch.float64)
            dist.all_reduce(shared)
        return shared.item() / self.world_size

    def gather(self, own: T) -> list[T] | None:
        """What each process gives, in the order of the processes, on the first one; None on the
        others.
        """
        if self.world_size == 1:
            return [own]
        parts: list[T] | None = [own] * self.world_size if self.rank == 0 else None
        with self.exchange("their results"):
            dist.gather_object(own, parts)
        return parts


def _start(rank: int, timeout: float) -> None:
    """Meet the other processes."""
    try:
        if rank > 0:
            _reach(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout)
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{error}: is not as torchrun sets it in the environment; start sprfast with torchrun"
        ) from error
    atexit.register(dist.destroy_process_group)  # not earlier: the trainings of one process share the group


def _reach(host: str, port: int, timeout: float) -> None:
    """Wait until the first process listens: PyTorch would wait twice as long and print its own
    stack.
    """
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=timeout).close()
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)
        else:
            return


@functools.cache
def _nccl(timeout: float) -> dist.ProcessGroup:
    """One for all trainings of this process. Its watchdog, which ends the process without a word of
    ours, comes last.
    """
    return dist.new_group(backend="nccl", timeout=datetime.timedelta(seconds=2.0 * timeout))  # type: ignore[no-any-return]


def _finish(timeout: float) -> None:
    """Wait until the current CUDA device is idle; an exchange over NCCL whose other side is gone
    would never end.

    Raises:
        dist.DistError: it is not idle in time.
    """
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    until = time.monotonic() + timeout
    while not event.query():  # type: ignore[no-untyped-call]
        if time.monotonic() >= until:
            raise dist.DistError(f"Timed out waiting {timeout:g} s for the device")
        time.sleep(1e-4)


def _is_of_processes(error: Exception) -> bool:
    """Whether it is about the connection to other processes; Gloo raises bare RuntimeErrors that
    name its own source file.
    """
    return isinstance(error, (dist.DistError, OSError)) or "/gloo/" in str(error)


def _reason(error: Exception) -> str:
    """What the library says, without its source line, its advice and its stack."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return re.sub(r"^\[[^\]]*\] ", "", line).partition(". ")[0].removesuffix(".")
