"""A training process among others: what torchrun's processes agree on."""

from __future__ import annotations

import atexit
import os
import signal

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sprfast.errors import InputError


def is_first() -> bool:
    """Whether this is the process that writes and prints: the first of torchrun's, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class ProcessGroup:
    """This process among those that torchrun started; alone, every method does nothing."""

    def __init__(self, batch_size: int) -> None:
        self.rank, self.world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if batch_size % self.world_size:
            raise InputError(f"batch_size: {batch_size} cannot be shared equally among {self.world_size} processes")
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(dist.destroy_process_group)  # not earlier: the trainings of one process share the group

    def wrap(self, network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The network with its gradients averaged over the processes."""
        if self.world_size == 1:
            return network
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)

    def agree(self, fraction: float, stop: signal.Signals | None) -> tuple[float, signal.Signals | None]:
        """The furthest fraction and any process's stop signal, so that all stop at the same step."""
        if self.world_size == 1:
            return fraction, stop
        shared = torch.tensor([fraction, float(stop or 0)], dtype=torch.float64)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared[0].item(), signal.Signals(int(shared[1])) if shared[1] else None

    def mean(self, value: float) -> float:
        """Mean of `value` over the processes."""
        if self.world_size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(shared)
        return shared.item() / self.world_size
