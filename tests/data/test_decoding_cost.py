"""Small files that would take much memory or time are refused, others stay within the bounds."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from sprfast.config import Preprocessing
from sprfast.data import decoding, opening, webp
from sprfast.data.images import load_image
from support import TESTS, decoding_memory
from support.pictures import SMALL, chunk, picture, png, refuses, saved, tagged_tiff


@pytest.mark.parametrize("policy", ["fit", "stretch", "refuse"])
@pytest.mark.parametrize("size", [(89_478_485, 1), (1, 89_478_485), (1_000_000, 1), (900_000, 40)])
def test_a_thin_picture_is_refused_by_its_header(
    size: tuple[int, int], policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(image: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(decoding, "loaded", loaded)
    given = Preprocessing(size=192, size_policy=policy)
    refuses(io.BytesIO(png(*size, 8, 0, b"")), "a side may have|limit of|too thin|not square", given)
    refuses(np.broadcast_to(np.uint8(0), size), "a side may have|limit of|too thin|not square", given)


def test_a_webp_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(image: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(webp, "pixels", decoded)
    kinds = set()
    exif = PIL.Image.Exif()
    exif[270] = "x"
    for options in ({"lossless": True}, {}, {"exif": exif}):
        stream = io.BytesIO()
        PIL.Image.new("RGB", (300, 200), "red").save(stream, "WEBP", **options)
        kinds.add(stream.getvalue()[12:16])
        refuses(stream, "200x300 .* above max_pixels", Preprocessing(max_pixels=59_999))
    assert kinds == {b"VP8 ", b"VP8L", b"VP8X"}


def test_files_that_are_read_whole_may_not_be_far_longer_than_their_pixels(tmp_path: Path) -> None:
    for kind in ("JPEG", "WEBP"):
        path = saved(tmp_path / "a.png", picture(), format=kind)
        load_image(path, SMALL)
        with open(path, "r+b") as stream:
            stream.truncate(2**24 + 2**20)  # without taking room on the disk
        refuses(path, "bytes are more than the")


def test_a_small_file_of_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = png(100, 100, 8, 2, (b"\0" + bytes(300)) * 100)
    load_image(io.BytesIO(flat), SMALL)
    monkeypatch.setattr(opening, "_DECODED_BYTES", 29_000)
    refuses(io.BytesIO(flat), "would take too long")
    long = flat[:-12] + chunk(b"teXt", bytes(2**16)) + flat[-12:]
    load_image(io.BytesIO(long), SMALL)


def test_only_a_second_page_is_looked_for() -> None:
    tags = {256: [16], 257: [16], 258: [8], 259: [1], 262: [1], 277: [1], 278: [16], 273: [0], 279: [256]}
    one = tagged_tiff(tags, bytes(256))
    ends = 10 + 12 * len(tags)
    pages = bytearray(one[:ends] + struct.pack("<I", len(one)) + one[ends + 4 :])
    for _ in range(2000):
        directory = one[8:ends] + struct.pack("<I", len(pages) + ends - 4)
        pages += directory
    began = time.monotonic()
    refuses(io.BytesIO(bytes(pages)), "several frames or pages")
    assert load_image(io.BytesIO(bytes(pages)), Preprocessing(size=16, frames="first")).source_size == (16, 16)
    assert time.monotonic() - began < 1


def test_a_tiff_of_too_many_strips_is_refused() -> None:
    rows = 100_001
    tags = {256: [64], 257: [rows], 258: [1], 259: [1], 262: [1], 277: [1], 278: [1]}
    tags |= {273: [0] * rows, 279: [8] * rows}
    refuses(io.BytesIO(tagged_tiff(tags, bytes(8))), "too long|too thin", Preprocessing(size_policy="stretch"))


@pytest.mark.parametrize("kind", decoding_memory.FILES)
def test_decoding_takes_12_bytes_a_pixel_at_most(tmp_path: Path, kind: str) -> None:
    """Of the whole process."""
    if kind.startswith("HEIC"):
        pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install 'sprfast[heic]'")
    command = [sys.executable, "-m", "support.decoding_memory", kind, tmp_path / "a"]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    peaks = [float(each) for each in done.stdout.split()]
    assert (done.returncode, len(peaks)) == (0, 3), done.stderr
    assert max(peaks) < 12.4  # with what the process takes at first
