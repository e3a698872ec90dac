"""Single operators of the CPU kernels on arrays; nothing is checked.

What each computes is said in `sprfast.kernels.cpu.reference`. Results go into arrays of the
caller's. `space` is scratch memory of as many floats as the function of the same name with `_space`
says.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from ctypes import CFUNCTYPE, POINTER, byref, c_int32, c_int64, c_void_p

import numpy as np

from sprfast.kernels.cpu import library
from sprfast.kernels.cpu.reference import Source

KINDS = {"activation": 0, "pooled": 1, "upsampled": 2}  # spr_source_kind


def fields(sizes: str, arrays: str) -> tuple[tuple[str, type], ...]:
    return (*((name, c_int32) for name in sizes.split()), *((name, c_void_p) for name in arrays.split()))


class Conv3x3(ctypes.Structure):
    _fields_ = fields("samples draws height width channels_in channels_out groups", "weight bias gamma beta")


class PerturbConv3x3(ctypes.Structure):
    _fields_ = fields(
        "images draws height width channels_out groups noise_images", "image noise std weight bias gamma beta"
    )


class Head(ctypes.Structure):
    _fields_ = fields("images draws height width channels noise_images", "raw affine weight bias noise scale")


class Operators(ctypes.Structure):
    """The first ones of `spr_operators`; the last argument of most are `spr_threads`."""

    _fields_ = (
        ("conv3x3_weights", CFUNCTYPE(c_int64, c_int32, c_int32)),
        ("pack_conv3x3", CFUNCTYPE(None, c_void_p, c_int32, c_int32, c_void_p)),
        ("conv3x3_space", CFUNCTYPE(c_int64, POINTER(Conv3x3), c_int32)),
        ("conv3x3", CFUNCTYPE(None, POINTER(Conv3x3), POINTER(library.Source), *[c_void_p] * 4)),
        ("perturb_conv3x3_space", CFUNCTYPE(c_int64, POINTER(PerturbConv3x3), c_int32)),
        ("perturb_conv3x3", CFUNCTYPE(None, POINTER(PerturbConv3x3), *[c_void_p] * 4)),
        ("head", CFUNCTYPE(None, POINTER(Head), *[c_void_p] * 2)),
        ("anomaly_map_space", CFUNCTYPE(c_int64, *[c_int32] * 4)),
        ("anomaly_map", CFUNCTYPE(None, *[c_int32] * 4, *[c_void_p] * 6)),
        ("swish", CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
    )


def table() -> Operators:
    """For the instruction set in use."""
    return Operators.from_address(library.operators())


def interface() -> library.Interface:
    return library.interface()


@contextlib.contextmanager
def pool(threads: int) -> Iterator[int]:
    opened = interface().open_threads(threads)
    yield opened
    interface().close_threads(opened)


def at(array: np.ndarray) -> int:
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return array.ctypes.data


def pack_conv3x3(weight):
    channels_out, channels_in, *_ = weight.shape
    packed = np.empty(table().conv3x3_weights(channels_in, channels_out), np.float32)
    table().pack_conv3x3(at(weight), channels_in, channels_out, at(packed))
    return packed


def conv3x3_space(samples, height, width, channels_in, channels_out, threads):
    return table().conv3x3_space(byref(Conv3x3(samples, 1, height, width, channels_in, channels_out, 1)), threads)


def conv3x3(sources: Sequence[Source], weight, bias, gamma, beta, groups, draws, raw, affine, space, threads) -> None:
    samples, height, width, channels = raw.shape
    given = (library.Source * len(sources))(*map(_source, sources))
    channels_in = sum(source.channels for source in given)
    convolution = Conv3x3(
        samples, draws, height, width, channels_in, channels, groups, *map(at, (weight, bias, gamma, beta))
    )
    with pool(threads) as opened:
        table().conv3x3(byref(convolution), given, *map(at, (raw, affine, space)), opened)


def perturb_conv3x3_space(images, draws, height, width, channels_out, threads):
    return table().perturb_conv3x3_space(
        byref(PerturbConv3x3(images, draws, height, width, channels_out, 1, 1)), threads
    )


def perturb_conv3x3(image, noise, std, weight, bias, gamma, beta, groups, raw, affine, space, threads) -> None:
    _, height, width, channels = raw.shape
    arrays = map(at, (image, noise, std, weight, bias, gamma, beta))
    convolution = PerturbConv3x3(len(image), len(std), height, width, channels, groups, noise.shape[1], *arrays)
    with pool(threads) as opened:
        table().perturb_conv3x3(byref(convolution), *map(at, (raw, affine, space)), opened)


def head(raw, affine, weight, bias, noise, scale, errors, threads) -> None:
    arrays = map(at, (raw, affine, weight, bias, noise, scale))
    given = Head(len(errors), len(scale), *raw.shape[1:], noise.shape[1], *arrays)
    with pool(threads) as opened:
        table().head(byref(given), at(errors), opened)


def anomaly_map_space(images, height, width, size):
    return table().anomaly_map_space(images, height, width, size)


def anomaly_map(errors, rows, columns, maps, space, threads) -> None:
    images, _, height, width = errors.shape
    with pool(threads) as opened:
        table().anomaly_map(images, height, width, len(rows), *map(at, (errors, rows, columns, maps, space)), opened)


def swish(x):
    y = np.empty_like(x)
    table().swish(at(x), at(y), x.size)
    return y


def _source(source: Source) -> library.Source:
    height, width, channels = source.raw.shape[1:]
    embedding = None if source.embedding is None else at(source.embedding)
    return library.Source(at(source.raw), at(source.affine), embedding, channels, height, width, KINDS[source.kind])
