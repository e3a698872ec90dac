"""Batches of training images: which images make up step s, and the worker processes that decode
them.

The order is a function of (seed, step) alone, so a run that resumes at any step, or is spread over
several processes, sees the batches that one uninterrupted process sees.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sprfast.config import Preprocessing
from sprfast.data.images import display_name, load_image
from sprfast.errors import BackendError, InputError, SprfastWarning

CACHE_BYTES = 4 * 2**30  # decoded images kept in memory
_FORK = multiprocessing.get_context("fork")
AHEAD = 4  # batches that a process decodes before they are asked for


def batch_order(
    images: int, batch_size: int, seed: int, *, start: int = 0, share: slice = slice(None)
) -> Iterator[list[int]]:
    """Endless batches of image indices from step `start` on; every epoch is a fresh permutation.

    Epochs follow each other without a gap, so every batch is full: batch s holds positions
    s·B to s·B + B - 1 of the endless sequence, of which this process takes its `share`.
    """
    for step in itertools.count(start):
        positions = range(step * batch_size, (step + 1) * batch_size)[share]
        yield [int(_permutation(images, seed, each // images)[each % images]) for each in positions]


@functools.lru_cache(maxsize=8)
def _permutation(images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch]))).permutation(images)


class ImageDataset(Dataset[torch.Tensor]):
    """Decoded and resized images, float32 (3, H, W) in [-1, 1].

    Every image is decoded once as the data set is made, so that one which cannot be used is named
    before the first step. Worker processes share what is kept of them, since they are forked.

    Args:
        paths: images of good parts.
        preprocessing: policies and network size.
        held_back: those of `paths` that are checked, but not part of the data set.
        cache_bytes: images that go beyond this are decoded again each time.

    Raises:
        InputError: images cannot be used, of which the first 5 are named with their faults; or they
            do not have one shape.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        preprocessing: Preprocessing,
        held_back: Collection[Path] = (),
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._preprocessing, unused = preprocessing, set(held_back)
        self._paths = [path for path in paths if path not in unused]
        self._cache: dict[Path, torch.Tensor] = {}
        shapes: dict[Path, torch.Size] = {}
        faults = []
        for path in paths:
            try:
                image = self._decode(path)
            except InputError as error:
                faults.append(str(error))
                continue
            shapes[path] = image.shape
            if path not in unused and image.nbytes <= cache_bytes:
                self._cache[path] = image
                cache_bytes -= image.nbytes
        if faults:
            more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise InputError(f"{len(faults)} of {len(paths)} images cannot be used: {'; '.join(faults[:5])}{more}")
        self._first = display_name(paths[0])
        self.height_width: tuple[int, int] = shapes[paths[0]][1], shapes[paths[0]][2]
        for path, shape in shapes.items():
            self._require_shape(path, shape)

    def __len__(self) -> int:
        return len(self._paths)

    def spread(self, count: int) -> torch.Tensor:
        """At most `count` of the images, evenly from first to last: (N, 3, H, W).

        Raises:
            InputError: an image has become unreadable.
        """
        step = -(-len(self) // count)
        return torch.stack([self[index] for index in range(0, len(self), step)])

    def __getitem__(self, index: int) -> torch.Tensor:
        path = self._paths[index]
        if path in self._cache:
            return self._cache[path]
        image = self._decode(path)
        self._require_shape(path, image.shape)
        return image

    def __getitems__(self, indices: list[int]) -> torch.Tensor | InputError:
        """The (B, 3, H, W) batch; an image that cannot be used is an answer, since a worker's
        exception arrives as a traceback in text.
        """
        try:
            return default_collate([self[index] for index in indices])  # type: ignore[no-any-return]
        except InputError as error:
            return error

    def _decode(self, path: Path) -> torch.Tensor:
        return torch.from_numpy(load_image(path, self._preprocessing).pixels)

    def _require_shape(self, path: Path, shape: torch.Size) -> None:
        height, width = self.height_width
        if shape[1:] != (height, width):
            raise InputError(
                f"{display_name(path)}: {shape[1]}x{shape[2]} at the network's input where {self._first} has "
                f"{height}x{width}; training needs one shape: use the size policy 'stretch'"
            )


@contextlib.contextmanager
def batches(
    dataset: ImageDataset, order: Iterator[list[int]], *, workers: int, pin_memory: bool
) -> Iterator[Iterator[torch.Tensor]]:
    """Endless (B, 3, H, W) batches in the given order, decoded by `workers` processes (0: in this
    one) that end with the context.

    Where these processes fail, as with little shared memory, the same batches are decoded fewer
    ahead, and at last in this process.

    Taking a batch raises InputError where an image has become unreadable or changed its shape, and
    BackendError where it cannot be decoded at all.
    """
    if workers and not os.access("/dev/shm", os.W_OK):
        _warn("/dev/shm is not writable: images are decoded in the training process itself")
        workers = 0
    stream = _batches(dataset, order, workers, pin_memory)
    try:
        yield stream
    finally:
        stream.close()


def _batches(
    dataset: ImageDataset, order: Iterator[list[int]], workers: int, pin_memory: bool
) -> Generator[torch.Tensor, None, None]:
    tries: list[tuple[int, int | None]] = [(0, None)]
    if workers:
        tries = [(workers, AHEAD), (workers, 1), *([(1, 1)] if workers > 1 else []), *tries]
    awaited: collections.deque[list[int]] = collections.deque()  # drawn from `order`, and not yet given
    for processes, ahead in tries:
        order = itertools.chain(tuple(awaited), order)
        awaited.clear()
        try:
            with _loading(dataset, _noted(order, awaited), processes, ahead, pin_memory) as stream:
                for batch in stream:
                    if isinstance(batch, InputError):
                        raise batch
                    awaited.popleft()
                    yield batch
            return
        except InputError:
            raise
        except Exception as error:  # of a loader process, or what torch makes of its death
            # below the traceback of a process; the error itself would keep its loader's batches
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            if not processes:
                raise BackendError(f"images cannot be decoded: {reason}") from error
        _warn(f"a process that decodes images failed ({reason}): fewer batches are decoded ahead from here on")


def _noted(order: Iterator[list[int]], awaited: collections.deque[list[int]]) -> Iterator[list[int]]:
    for indices in order:
        awaited.append(indices)
        yield indices


@contextlib.contextmanager
def _loading(
    dataset: ImageDataset, order: Iterator[list[int]], workers: int, ahead: int | None, pin_memory: bool
) -> Iterator[Iterator[torch.Tensor | InputError]]:
    """torch's loader, with so many batches ahead for each of its processes, which end with the
    context.
    """
    loader: DataLoader[torch.Tensor] = DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=lambda batch: batch,  # `ImageDataset.__getitems__` has put it together
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=ahead,
        multiprocessing_context=_FORK if workers else None,
        worker_init_fn=_start_worker,
    )
    if workers:
        # what torch is about to make: without room for it a half-made loader would be left
        made = [_FORK.Event(), *(_FORK.Queue() for _ in range(workers + 1))]
        del made
    stream = iter(loader)
    with _deaths_unannounced():
        try:
            yield stream
        finally:
            # an exception's traceback would keep the workers alive until Python exits, which waits
            # for them for ever, since they ignore SIGTERM; nothing public ends them
            if isinstance(stream, _MultiProcessingDataLoaderIter):
                stream._shutdown_workers()


@contextlib.contextmanager
def _deaths_unannounced() -> Iterator[None]:
    """Without torch's handler of SIGCHLD, which would raise in the midst of a step where a process
    dies; torch sees that also when it is asked for the next batch.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    ours = handler is not None and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGCHLD, handler)


def _warn(message: str) -> None:
    warnings.warn(message, SprfastWarning, stacklevel=2)


def _start_worker(_: int) -> None:
    """Leave signals to the training process: it stops after the step and ends its workers."""
    torch.set_num_threads(1)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
