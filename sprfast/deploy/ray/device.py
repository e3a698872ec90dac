"""The device of a worker that Ray starts."""

from __future__ import annotations

from sprfast.errors import InputError


def device_under_ray(device: str | None, gpus: float) -> str:
    """The device of a worker that Ray gives `gpus` GPUs; None means CUDA where that is above 0.

    Raises:
        InputError: Ray would not count what the worker uses, or the worker would not use what it is
            given.
    """
    chosen = device or ("cuda" if gpus else "cpu")
    if chosen not in ("cpu", "cuda"):
        raise InputError(f"device: {chosen!r} is not allowed, expected cpu or cuda; Ray chooses the GPU")
    if (chosen == "cuda") != (gpus > 0):
        raise InputError(f"device {chosen} with {gpus:g} GPUs a worker: cuda needs a number above 0, and cpu none")
    return chosen
