"""What the tests of `Line` share: engines whose network can be held, made to fail, or made short of
memory.
"""

import contextlib
import threading
import time

import numpy as np
import torch

from sprfast.backends.eager import EagerBackend
from sprfast.engine.engine import Engine

PATIENCE = 60.0  # seconds for what takes milliseconds on a machine that is not busy


class Network:
    """A backend that computes what `eager` does, when it is let to; the network's behaviour is what
    the tests choose, nothing else.
    """

    def __init__(self, model):
        self.device = torch.device("cpu")
        self._backend = EagerBackend(model, self.device)
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.memory = None  # images that fit, None: any number
        self.fault = lambda x: None  # an exception for these images, or None
        self.batches = []

    def maps(self, x, noise):
        self.entered.set()
        assert self.open.wait(PATIENCE)
        self.batches.append(len(x))
        if self.memory is not None and len(x) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        if error := self.fault(x):
            raise error
        return self._backend.maps(x, noise)

    @contextlib.contextmanager
    def held(self):
        """Calls of the network begin and wait."""
        self.open.clear()
        self.entered.clear()
        try:
            yield
        finally:
            self.open.set()


def engine_with_network(model):
    """An engine, and the network in it."""
    network = Network(model)
    return Engine(model, network), network


def frame(seed, shape=(32, 32, 3)):
    """A picture of its own; its contrast is such that some pass and some do not."""
    random = np.random.default_rng(seed)
    return (random.random(shape) * 255 * (0.25 + 0.75 * random.random())).astype(np.uint8)


def eventually(condition):
    """Whether `condition()` comes true."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.005)
    return False


def fill(line, network, count, first=0):
    """Futures of `count` frames, of which the network has begun the first one, alone."""
    network.open.clear()
    network.entered.clear()
    futures = [line.submit(frame(first), first, channel_order="rgb")]
    assert network.entered.wait(PATIENCE)
    return futures + [line.submit(frame(seed), seed, channel_order="rgb") for seed in range(first + 1, first + count)]


def errors_of(futures):
    return [type(future.result(PATIENCE).error) for future in futures]


def entry_of(line, id):
    """What the line knows of the frame with this id."""
    return next(entry for entry in line._in_flight._entries.values() if entry.claim.id == id)
