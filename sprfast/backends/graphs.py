"""What the backends share that run a model as an ONNX graph: one session for each size of
images.
"""

from __future__ import annotations

import abc
import collections
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from sprfast.backends.registry import inputs
from sprfast.backends.sessions.session import Session
from sprfast.formats.model import Model
from sprfast.lowering.fold import fold
from sprfast.method.folded import FoldedModel

SIZES = 4  # whose sessions are kept, the last ones used

CPU = torch.device("cpu")


class GraphBackend(abc.ABC):
    """Maps by sessions of a runtime, which are opened when images of their size come first.

    An image gives the same bits alone and in a batch where the session says so.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.device = device
        self._folded = fold(model)
        self._sessions: collections.OrderedDict[tuple[int, int], Session] = collections.OrderedDict()
        self._lock = threading.Lock()

    @abc.abstractmethod
    def _open(self, folded: FoldedModel, height: int, width: int) -> Session:
        """A session for images of this size."""

    @torch.inference_mode()
    def maps(self, x: Tensor, noise: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """As `backends.Backend.maps`; images that have draws of their own go one by one.

        Raises:
            InputError: an image is smaller than 16 pixels on a side.
            BackendError: the runtime failed.
        """
        x, z = inputs(x.detach().float(), [draws.detach().float() for draws in noise], CPU)
        session = self._session(*x.shape[2:])
        if z.shape[1] == 1:
            maps = session.maps(x.numpy(), z[:, 0].contiguous().numpy())
            errors, anomaly_maps = map(torch.from_numpy, maps)
        else:
            pairs = [session.maps(x[i : i + 1].numpy(), z[:, i].contiguous().numpy()) for i in range(len(x))]
            errors, anomaly_maps = (
                torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*pairs, strict=True)
            )
        return errors.to(self.device), anomaly_maps.to(self.device)

    def _session(self, height: int, width: int) -> Session:
        with self._lock:  # also while it opens: a second caller would open the same
            size = (height, width)
            if size not in self._sessions:
                self._sessions[size] = self._open(self._folded, height, width)
                while len(self._sessions) > SIZES:
                    self._sessions.popitem(last=False)
            self._sessions.move_to_end(size)
            return self._sessions[size]
