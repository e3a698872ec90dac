"""Tensors in an export: their description, their place and their numbers."""

import hashlib
import struct

import numpy as np
import pytest

NAME = "up3.first.weight"


def change(place, key, value):
    def edit(header, manifest, data):
        (header if place == "header" else manifest["tensors"])[NAME][key] = value

    return edit


def swap(header, manifest, data):
    header["std"]["data_offsets"], header["scale"]["data_offsets"] = (
        header["scale"]["data_offsets"],
        header["std"]["data_offsets"],
    )


def transposed(header, manifest, data):
    for each in (header[NAME], manifest["tensors"][NAME]):
        each["shape"] = each["shape"][::-1]


def halved(header, manifest, data):
    header[NAME]["dtype"], manifest["tensors"][NAME]["dtype"] = "I32", "int32"


def overlapping(header, manifest, data):
    header[NAME]["data_offsets"] = [each - 4 for each in header[NAME]["data_offsets"]]


def reversed_offsets(header, manifest, data):
    header[NAME]["data_offsets"].reverse()


def missing(header, manifest, data):
    del header[NAME], manifest["tensors"][NAME]


def unknown(header, manifest, data):
    end = len(data)
    data += b"\0\0\0\0"
    header["extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
    digest = hashlib.sha256(b"\0\0\0\0").hexdigest()
    manifest["tensors"]["extra"] = {"shape": [1], "dtype": "float32", "sha256": digest}


def hole(header, manifest, data):
    data += b"\0\0\0\0"


def number(value):
    def edit(header, manifest, data):
        begin, end = header[NAME]["data_offsets"]
        data[begin : begin + 4] = struct.pack("<f", value)
        manifest["tensors"][NAME]["sha256"] = hashlib.sha256(data[begin:end]).hexdigest()

    return edit


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (change("header", "dtype", "F16"), "dtype"),
        (change("header", "dtype", "F8_E8M0"), "dtype"),
        (change("header", "dtype", {"F32": None}), "'dtype' of tensor 'up3.first.weight' is an object"),
        (
            change("header", "shape", [2**62, 2**62]),
            "shape of tensor 'up3.first.weight' is [4611686018427387904, 4611686018427387904], expected [2, 4, 3, 3]",
        ),
        (change("header", "shape", []), "shape"),
        (change("header", "data_offsets", [0]), "data_offsets"),
        (change("header", "data_offsets", [-4, 0]), "data_offsets"),
        (change("header", "data_offsets", [0, 2**64]), "a place of 288 bytes"),
        (change("header", "data_offsets", [0.0, 4]), "data_offsets"),
        (change("manifest", "dtype", "int32"), "dtype"),
        (change("manifest", "shape", [1]), "shape"),
        (change("manifest", "shape", None), "'shape' of tensor 'up3.first.weight' is null"),
        (change("manifest", "sha256", "0" * 64), "sha256"),
        (change("manifest", "sha256", None), "'sha256' of tensor 'up3.first.weight' is null"),
        (
            lambda header, manifest, data: manifest["tensors"].update({NAME: {}}),
            "'dtype' of tensor 'up3.first.weight' is missing",
        ),
        (lambda header, manifest, data: manifest["tensors"].pop(NAME), f"'{NAME}' is missing"),
        (lambda header, manifest, data: manifest["tensors"].update(lost={}), "'lost' is not one of an export"),
        (lambda header, manifest, data: header.update(a=[]), "'a' is not one of an export"),
        (swap, "sha256"),
        (transposed, "shape"),
        (halved, "dtype"),
        (overlapping, "does not follow"),
        (reversed_offsets, "a place of 288 bytes"),
        (missing, f"'{NAME}' is missing"),
        (unknown, "'extra' is not one of an export"),
        (hole, "damaged"),
        (number(np.nan), "holds NaN or infinity"),
        (number(-np.inf), "holds NaN or infinity"),
        (number(-0.0), None),
    ],
)
def test_tensors_that_are_not_an_exports_are_refused(both, sample, edit, why):
    found = both(sample.forged(edit))
    assert found is None if why is None else why in found
