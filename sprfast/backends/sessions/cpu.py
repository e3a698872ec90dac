"""A plan through our CPU kernels."""

from __future__ import annotations

from sprfast.backends.sessions.cpu_network import CpuUNet
from sprfast.backends.sessions.session import Floats
from sprfast.errors import BackendError
from sprfast.kernels.cpu import library
from sprfast.method.folded import FoldedModel


def unavailable() -> str | None:
    """None where the library of kernels is built and loads, else the reason."""
    return library.unavailable()


class CpuSession:
    """A `session.Session` of our kernels, in float32; an image gives the same bits in any batch and
    with any number of threads.

    Args:
        folded: what is computed.
        threads: of every call, at least 1.

    Raises:
        BackendError: the kernels cannot run here.
    """

    def __init__(self, folded: FoldedModel, threads: int) -> None:
        if reason := unavailable():
            raise BackendError(f"backend cpu: {reason}")
        self._network, self._threads = CpuUNet(folded), threads

    def maps(self, x: Floats, z: Floats) -> tuple[Floats, Floats]:
        """As `session.Session.maps`, of images of any size from 16 pixels on."""
        return self._network.maps(x, z[:, None], self._threads)
