"""The CPU kernels on NumPy arrays: every argument is checked here, and what passes is safe to hand
to C.

Arrays are float32 and C-contiguous; feature maps are (N, H, W, C) with C a multiple of 32. What an
operator computes is said by the function of its name in `reference`. Results are written into
arrays of the caller's, which must not overlap with what is read: that is not checked. `space` is
scratch memory, one-dimensional, of at least as many floats as the function of the same name with
`_space` says; its contents need not be kept. Results depend neither on `threads`, at least 1, nor
on the other samples of a call. Calls may run at the same time, each with `space` and results of its
own. Every operator raises ValueError, naming the argument, for what it does not take.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from ctypes import byref
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from sprfast.kernels.cpu import library

Floats: TypeAlias = npt.NDArray[np.float32]
Kind = Literal["activation", "pooled", "upsampled"]
T = TypeVar("T")  # an array, or a tensor of the reference

CHANNELS = 32  # every feature map has a multiple of this many
LINE = 64  # bytes; arrays that begin on a multiple of this are read fastest
PLANES = 36  # floats of packed weight for one of input and one of output channels

_FLOAT32 = np.dtype(np.float32)
_LARGEST = 2**31 - 1  # sizes are 32-bit integers in C
_KINDS = {"activation": 0, "pooled": 1, "upsampled": 2}  # spr_source_kind


@dataclasses.dataclass(frozen=True, eq=False)
class Source(Generic[T]):
    """What a convolution reads: another convolution's raw output, activated on the way.

    activation: swish(a·raw + b) + embedding, for an output of (h, w).
    pooled: its 2x2 maximum, for (h // 2, w // 2); an odd last row or column is dropped.
    upsampled: its bilinear upsampling by 2 (align_corners), for (2h or 2h + 1, 2w or 2w + 1), zero
    beyond.
    """

    raw: T  # (N, h, w, C)
    affine: T  # (N, 2, C): a and b of the normalisation
    embedding: T | None  # (D, C), added to the samples of each draw
    kind: Kind


def empty(shape: tuple[int, ...]) -> Floats:
    """An uninitialised array that begins on a multiple of LINE bytes."""
    count, padding = math.prod(shape), LINE // _FLOAT32.itemsize
    memory = np.empty(count + padding, dtype=_FLOAT32)
    first = -memory.ctypes.data % LINE // _FLOAT32.itemsize
    return memory[first : first + count].reshape(shape)


def pack_conv3x3(weight: Floats) -> Floats:
    """The weight of a convolution as `conv3x3` takes it with the instruction set in use.

    Args:
        weight: (O, I, 3, 3).

    Returns:
        (36·I·O,).
    """
    channels_out, channels_in, *_ = _shape("weight", weight, 4)
    _channels("weight", channels_in, channels_out)
    address = _address("weight", weight, (channels_out, channels_in, 3, 3))
    packed = empty((PLANES * channels_in * channels_out,))
    library.operators().pack_conv3x3(address, channels_in, channels_out, packed.ctypes.data)
    return packed


def conv3x3_space(samples: int, height: int, width: int, channels_in: int, channels_out: int, threads: int) -> int:
    """Floats of `space` that `conv3x3` needs for an output of (samples, height, width,
    channels_out).
    """
    _counts(
        samples=samples, height=height, width=width, channels_in=channels_in, channels_out=channels_out, threads=threads
    )
    _channels("channels_in and channels_out", channels_in, channels_out)
    convolution = library.Conv3x3(samples, 1, height, width, channels_in, channels_out, 1)
    return library.operators().conv3x3_space(byref(convolution), threads)  # type: ignore[no-any-return]


def conv3x3(
    sources: Sequence[Source[Floats]],
    weight: Floats,
    bias: Floats,
    gamma: Floats,
    beta: Floats,
    groups: int,
    draws: int,
    raw: Floats,
    affine: Floats,
    space: Floats,
    threads: int,
) -> None:
    """Compute `reference.conv3x3` into `raw` and `affine`.

    Args:
        sources: at least one, each with a multiple of 32 channels.
        weight: (36·I·O,), as `pack_conv3x3` makes it with the same instruction set, for I channels
            of all sources.
        bias, gamma, beta, groups, draws: as of the reference.
        raw: (N, H, W, O), written.
        affine: (N, 2, O), written.
    """
    samples, height, width, channels_out = _map("raw", raw)
    _counts(groups=groups, draws=draws, threads=threads)
    _divides("draws", draws, samples, "samples")
    given = [_source(f"sources[{i}].", source, draws, (samples, height, width)) for i, source in enumerate(sources)]
    channels_in = sum(source.channels for source in given)
    if not given:
        raise ValueError("sources: is empty, must hold at least one")
    convolution = library.Conv3x3(
        samples,
        draws,
        height,
        width,
        channels_in,
        channels_out,
        groups,
        _address("weight", weight, (PLANES * channels_in * channels_out,)),
        *_norm(bias, gamma, beta, groups, channels_out),
    )
    written = _written(raw, affine)
    table = library.operators()
    memory = _scratch(space, table.conv3x3_space(byref(convolution), threads))
    table.conv3x3(byref(convolution), (library.Source * len(given))(*given), *written, memory, threads)


def pack_perturb(weight: Floats) -> Floats:
    """Pack as `reference.pack_perturb` does: (O, 3, 3, 3) to (27, O)."""
    channels_out, *_ = _shape("weight", weight, 4)
    _channels("weight", channels_out)
    _address("weight", weight, (channels_out, 3, 3, 3))
    packed = empty((27, channels_out))
    packed[:] = weight.reshape(channels_out, 27).T
    return packed


def perturb_conv3x3_space(images: int, draws: int, height: int, width: int, channels_out: int, threads: int) -> int:
    """Floats of `space` that `perturb_conv3x3` needs for an output of (images·draws, height, width,
    channels_out).
    """
    _counts(images=images, draws=draws, height=height, width=width, channels_out=channels_out, threads=threads)
    _channels("channels_out", channels_out)
    convolution = library.PerturbConv3x3(images, draws, height, width, channels_out, 1, 1)
    return library.operators().perturb_conv3x3_space(byref(convolution), threads)  # type: ignore[no-any-return]


def perturb_conv3x3(
    image: Floats,
    noise: Floats,
    std: Floats,
    weight: Floats,
    bias: Floats,
    gamma: Floats,
    beta: Floats,
    groups: int,
    raw: Floats,
    affine: Floats,
    space: Floats,
    threads: int,
) -> None:
    """Compute `reference.perturb_conv3x3` into `raw` and `affine`.

    Args:
        image, noise, std, bias, gamma, beta, groups: as of the reference.
        weight: (27, O), as `pack_perturb` makes it.
        raw: (B·D, H, W, O), written.
        affine: (B·D, 2, O), written.
    """
    samples, height, width, channels_out = _map("raw", raw)
    _counts(groups=groups, threads=threads)
    images, draws, noise_images = _draws("std", std, noise, samples)
    convolution = library.PerturbConv3x3(
        images,
        draws,
        height,
        width,
        channels_out,
        groups,
        noise_images,
        _address("image", image, (images, 3, height, width)),
        _address("noise", noise, (draws, noise_images, 3, height, width)),
        _address("std", std, (draws,)),
        _address("weight", weight, (27, channels_out)),
        *_norm(bias, gamma, beta, groups, channels_out),
    )
    written = _written(raw, affine)
    table = library.operators()
    memory = _scratch(space, table.perturb_conv3x3_space(byref(convolution), threads))
    table.perturb_conv3x3(byref(convolution), *written, memory, threads)


def head(
    raw: Floats,
    affine: Floats,
    weight: Floats,
    bias: Floats,
    noise: Floats,
    scale: Floats,
    errors: Floats,
    threads: int,
) -> None:
    """Compute `reference.head` into `errors`.

    Args:
        raw, affine, weight, bias, noise, scale: as of the reference.
        errors: (B, 1, H, W), written.
    """
    samples, height, width, channels = _map("raw", raw)
    _counts(threads=threads)
    images, draws, noise_images = _draws("scale", scale, noise, samples)
    given = library.Head(
        images,
        draws,
        height,
        width,
        channels,
        noise_images,
        _address("raw", raw, raw.shape),
        _address("affine", affine, (samples, 2, channels)),
        _address("weight", weight, (3, channels)),
        _address("bias", bias, (draws, 3)),
        _address("noise", noise, (draws, noise_images, 3, height, width)),
        _address("scale", scale, (draws,)),
    )
    written = _address("errors", errors, (images, 1, height, width), written=True)
    library.operators().head(byref(given), written, threads)


def anomaly_map_space(images: int, height: int, width: int, size: int) -> int:
    """Floats of `space` that `anomaly_map` needs for errors of (images, 1, height, width) and maps
    of (images, 1, size, size).
    """
    _counts(images=images, height=height, width=width, size=size)
    return library.operators().anomaly_map_space(images, height, width, size)  # type: ignore[no-any-return]


def anomaly_map(errors: Floats, rows: Floats, columns: Floats, maps: Floats, space: Floats, threads: int) -> None:
    """Compute `reference.anomaly_map` into `maps`.

    Args:
        errors, rows, columns: as of the reference; zeros at both ends of a row of `rows` or
            `columns` cost no time, and what they would be multiplied with is not read.
        maps: (B, 1, S, S), written.
    """
    images, _, height, width = _shape("errors", errors, 4)
    size, _ = _shape("rows", rows, 2)
    _counts(threads=threads)
    read = (
        _address("errors", errors, (images, 1, height, width)),
        _address("rows", rows, (size, height)),
        _address("columns", columns, (size, width)),
    )
    written = _address("maps", maps, (images, 1, size, size), written=True)
    table = library.operators()
    memory = _scratch(space, table.anomaly_map_space(images, height, width, size))
    table.anomaly_map(images, height, width, size, *read, written, memory, threads)


def swish(x: Floats) -> Floats:
    """x·sigmoid(x) as all operators compute it; any shape."""
    address = _address("x", x, np.shape(x))
    y = empty(x.shape)
    library.operators().swish(address, y.ctypes.data, x.size)
    return y


def _source(name: str, source: Source[Floats], draws: int, size: tuple[int, int, int]) -> library.Source:
    samples, height, width, channels = _map(f"{name}raw", source.raw)
    if source.kind not in _KINDS:
        raise ValueError(f"{name}kind: is {source.kind!r}, must be one of {', '.join(_KINDS)}")
    fits = {
        "activation": (samples, height, width) == size,
        "pooled": (samples, height // 2, width // 2) == size,
        "upsampled": samples == size[0] and size[1] - 2 * height in (0, 1) and size[2] - 2 * width in (0, 1),
    }
    if not fits[source.kind]:
        raise ValueError(
            f"{name}raw: (N, H, W) is {(samples, height, width)}, which {source.kind} does not give the output's {size}"
        )
    return library.Source(
        _address(f"{name}raw", source.raw, source.raw.shape),
        _address(f"{name}affine", source.affine, (samples, 2, channels)),
        None if source.embedding is None else _address(f"{name}embedding", source.embedding, (draws, channels)),
        channels,
        height,
        width,
        _KINDS[source.kind],
    )


def _norm(bias: Floats, gamma: Floats, beta: Floats, groups: int, channels: int) -> tuple[int, ...]:
    _divides("groups", groups, channels, "output channels")
    given = {"bias": bias, "gamma": gamma, "beta": beta}
    return tuple(_address(name, array, (channels,)) for name, array in given.items())


def _draws(name: str, of_draw: Floats, noise: Floats, samples: int) -> tuple[int, int, int]:
    """Images, draws and images of the noise, where the array `name` has a number for each draw."""
    (draws,) = _shape(name, of_draw, 1)
    _divides(name, draws, samples, "samples")
    images, noise_images = samples // draws, _shape("noise", noise, 5)[1]
    if noise_images not in (1, images):
        raise ValueError(f"noise: is for {noise_images} images, must be for 1 or {images}")
    return images, draws, noise_images


def _written(raw: Floats, affine: Floats) -> tuple[int, int]:
    samples, _, _, channels = raw.shape
    return (
        _address("raw", raw, raw.shape, written=True),
        _address("affine", affine, (samples, 2, channels), written=True),
    )


def _scratch(space: Floats, needed: int) -> int:
    (count,) = _shape("space", space, 1)
    if count < needed:
        raise ValueError(f"space: has {count} floats, must have {needed}")
    return _address("space", space, space.shape, written=True)


def _map(name: str, array: Floats) -> tuple[int, int, int, int]:
    """The sizes (N, H, W, C) of a feature map."""
    samples, height, width, channels = _shape(name, array, 4)
    _channels(name, channels)
    return samples, height, width, channels


def _shape(name: str, array: Floats, dimensions: int) -> tuple[int, ...]:
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != dimensions
        or not 1 <= min(array.shape) <= max(array.shape) <= _LARGEST
    ):
        raise ValueError(
            f"{name}: is {_described(array)}, must be a NumPy array of {dimensions} dimensions, none of them 0"
        )
    return array.shape


def _address(name: str, array: Floats, shape: tuple[int, ...], written: bool = False) -> int:
    """Where the array lies, once it is what C takes."""
    if isinstance(array, np.ndarray) and array.shape == shape and array.dtype == _FLOAT32:
        flags = array.flags
        if flags.c_contiguous and flags.aligned and (flags.writeable or not written):
            return array.ctypes.data
    writeable = ", writeable" if written else ""
    raise ValueError(f"{name}: is {_described(array)}, must be float32 {shape}, C-contiguous, aligned{writeable}")


def _described(array: object) -> str:
    if not isinstance(array, np.ndarray):
        return f"a {type(array).__name__}"
    flags = array.flags
    lacking = (("C-contiguous", flags.c_contiguous), ("aligned", flags.aligned), ("writeable", flags.writeable))
    return ", not ".join([f"{array.dtype} {array.shape}", *(name for name, given in lacking if not given)])


def _counts(**counts: int) -> None:
    for name, count in counts.items():
        if not 1 <= count <= _LARGEST:
            raise ValueError(f"{name}: is {count}, must be from 1 to {_LARGEST}")


def _channels(name: str, *counts: int) -> None:
    for count in counts:
        if count % CHANNELS:
            raise ValueError(f"{name}: has {count} channels, must have a multiple of {CHANNELS}")


def _divides(name: str, count: int, whole: int, of: str) -> None:
    if whole % count:
        raise ValueError(f"{name}: {count} do not divide {whole} {of}")
