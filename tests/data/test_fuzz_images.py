"""Image files after accidents, and made to deceive: refused in one line that names them, or a
picture within the contract; nothing else.
"""

import dataclasses
import importlib
import io
import math
import resource
import struct
import warnings
import zlib
from importlib.util import find_spec

import numpy as np
import PIL.Image
import pytest
from hypothesis import strategies as st
from PIL import ImageCms

from sprfast.config import Preprocessing
from sprfast.data.images import image_size, load_image, load_mask, read_rgb
from sprfast.engine.engine import Engine
from sprfast.errors import InputError
from sprfast.method.threshold import Verdict
from support.fuzzing import attempt, damaged, fuzzed
from support.pictures import profile as p3_profile

LENIENT = {"alpha": "composite", "frames": "first", "size_policy": "stretch"}
POLICIES = [
    Preprocessing(size=16, max_pixels=2000),
    Preprocessing(size=16, max_pixels=2000, **LENIENT),
    Preprocessing(size=16, max_pixels=2000, orientation="ignore", **LENIENT),
]
SIGNATURES = [
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"RIFF\x20\0\0\0WEBP",
    b"P5\n",
    b"P6 8 8 255\n",
    b"\0\0\0\x1cftypheic",
]


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def in_heic(image):
    stream = io.BytesIO()
    importlib.import_module("pillow_heif").from_pillow(image).save(stream)
    return stream.getvalue()


def samples():
    """Small files of every format and mode that there is something special about."""
    pixels = np.random.default_rng(1).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    rgb = PIL.Image.fromarray(pixels)
    deep = PIL.Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    clear, bits, palette = rgb.copy(), rgb.convert("1"), rgb.quantize(8)
    clear.putalpha(128)
    exif = rgb.getexif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    many = {"save_all": True, "append_images": [rgb, rgb]}
    heic = {"heic": [in_heic(image) for image in (rgb, clear)]} if find_spec("pillow_heif") else {}
    return heic | {
        "png": [
            *(encoded(image, "PNG") for image in (rgb, deep, clear, bits)),
            encoded(palette, "PNG", transparency=1),
            encoded(rgb, "PNG", exif=exif, icc_profile=profile, **many),
        ],
        "jpeg": [
            encoded(rgb, "JPEG", exif=exif, icc_profile=profile),
            encoded(rgb, "JPEG", progressive=True, icc_profile=p3_profile("Display P3")),
            encoded(rgb, "MPO", **many),
            encoded(rgb.convert("CMYK"), "JPEG"),
        ],
        "netpbm": [encoded(image, "PPM") for image in (rgb, deep, rgb.convert("L"))],
        "bmp": [encoded(image, "BMP") for image in (rgb, bits, palette)],
        "tiff": [
            encoded(rgb, "TIFF", exif=exif, icc_profile=profile),
            encoded(deep, "TIFF"),
            encoded(rgb, "TIFF", compression="tiff_lzw", **many),
            encoded(rgb, "TIFF", compression="jpeg"),
            encoded(rgb, "TIFF", big_tiff=True),
            encoded(clear, "TIFF", compression="tiff_adobe_deflate"),
        ],
        "webp": [
            encoded(rgb, "WEBP", exif=exif, icc_profile=profile),
            encoded(clear, "WEBP", lossless=True),
            encoded(rgb, "WEBP", **many),
        ],
    }


SAMPLES = samples()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "part.img"


@pytest.fixture(scope="module")
def engines(small_model):
    return [Engine(dataclasses.replace(small_model, preprocessing=policy), "eager", "cpu") for policy in POLICIES[1:]]


def check(file, content, policy, strict, engines=()):
    """Everything that opens an image file keeps its promise for this one, with Pillow's warnings as
    errors or not.
    """
    file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        warnings.filterwarnings("ignore", message=".*is it inverted")
        image = attempt(lambda: load_image(file, policy), f"{file}: ", InputError)
        in_memory = attempt(lambda: load_image(io.BytesIO(content), policy), "file in memory: ", InputError)
        assert (in_memory is None) == (image is None)
        if image is not None:
            assert image.pixels.dtype == np.float32
            assert image.pixels.shape[0] == 3
            np.testing.assert_array_equal(in_memory.pixels, image.pixels)
            assert (np.abs(image.pixels) <= 1).all()  # which NaN is not
            height, width = image.source_size
            assert 1 <= height * width <= policy.max_pixels
            assert image_size(file, policy) == (height, width)
            assert read_rgb(file, policy).shape == (height, width, 3)
            mask = attempt(lambda: load_mask(file, 8), f"{file}: ", InputError)
            assert mask is None or mask.shape == (8, 8)
        for engine in engines:
            result = engine.predict(file)
            assert result.verdict is Verdict.ERROR or math.isfinite(result.pred_score)


@pytest.mark.parametrize("kind", SAMPLES)
@fuzzed(150, data=st.data())
def test_a_damaged_image_is_refused_or_a_picture(kind, file, engines, data):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = data.draw(damaged(data.draw(st.sampled_from(SAMPLES[kind])), 120))
    check(
        file,
        content,
        data.draw(st.sampled_from(POLICIES)),
        data.draw(st.booleans()),
        engines if data.draw(st.integers(0, 9)) == 0 else (),
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024, "KiB of memory for one small file"


@fuzzed(
    150,
    start=st.sampled_from(SIGNATURES),
    rest=st.binary(max_size=200),
    policy=st.sampled_from(POLICIES),
    strict=st.booleans(),
)
def test_any_bytes_behind_a_signature_are_refused_or_a_picture(file, start, rest, policy, strict):
    check(file, start + rest, policy, strict)


CHUNKS = [
    b"IHDR",
    b"PLTE",
    b"IDAT",
    b"IEND",
    b"tRNS",
    b"iCCP",
    b"eXIf",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"zTXt",
    b"iTXt",
    b"gAMA",
    b"pHYs",
    b"sRGB",
]
IHDR = st.tuples(
    st.sampled_from([0, 1, 16, 60_000, 2**31 - 1, 2**32 - 1]),
    st.sampled_from([1, 16, 60_000, 2**32 - 1]),
    st.sampled_from([1, 2, 4, 8, 16, 3]),
    st.sampled_from([0, 2, 3, 4, 6, 5]),
    st.sampled_from([0, 1]),
    st.sampled_from([0, 1]),
    st.sampled_from([0, 1, 2]),
).map(lambda fields: struct.pack(">IIBBBBB", *fields))


def chunks_of(content):
    """Name and content of each chunk of a PNG file."""
    at = 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length


@fuzzed(250, data=st.data())
def test_a_png_of_valid_checksums_and_any_chunks_is_refused_or_a_picture(file, data):
    """A flipped bit is noticed by a checksum; here the checksums are right, so that the decoder
    meets what is wrong.
    """
    chunks = list(chunks_of(data.draw(st.sampled_from(SAMPLES["png"]))))
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(chunks) - 1))
        name, body = chunks[at]
        edit = data.draw(st.sampled_from(["header", "damage", "insert", "remove", "swap"]))
        if edit == "header":
            chunks[0] = (b"IHDR", data.draw(IHDR))
        elif edit == "damage":
            chunks[at] = (name, data.draw(damaged(body, 40)))
        elif edit == "insert":
            packed = st.binary(max_size=20).map(lambda text: b"name\0\0" + zlib.compress(text))
            chunks.insert(at, (data.draw(st.sampled_from(CHUNKS)), data.draw(st.binary(max_size=30) | packed)))
        elif edit == "remove" and len(chunks) > 1:
            del chunks[at]
        else:
            chunks.append(chunks.pop(at))
    body = b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in chunks
    )
    check(file, SIGNATURES[0] + body, data.draw(st.sampled_from(POLICIES)), data.draw(st.booleans()))


TAGS = [
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    323,
    324,
    325,
    330,
    338,
    339,
    347,
    529,
    530,
    700,
]
TAGS += [33432, 33723, 34377, 34665, 34675, 34853, 37500, 50838]
GOOD_TAGS = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 256}


@fuzzed(400, data=st.data())
def test_a_tiff_of_any_tags_is_refused_or_a_picture(file, data):
    """A grey file of 16x16 pixels whose tags are of any type, number and value."""
    tags = {tag: (4, 1, struct.pack("<I", value)) for tag, value in GOOD_TAGS.items()}
    tags[273] = (4, 1, struct.pack("<I", 600))
    for _ in range(data.draw(st.integers(1, 3))):
        count = data.draw(st.sampled_from([0, 1, 1, 1, 2, 3, 4, 70, 2**31, 2**32 - 1]))
        small = st.integers(0, 9).map(lambda value: struct.pack("<I", value))
        tags[data.draw(st.sampled_from(TAGS))] = (
            data.draw(st.integers(0, 18)),
            count,
            data.draw(small | st.binary(min_size=4, max_size=4)),
        )
    entries = b"".join(
        struct.pack("<HHI", tag, kind, count) + value for tag, (kind, count, value) in sorted(tags.items())
    )
    following = data.draw(st.sampled_from([0, 0, 0, 8, 2**32 - 1]))
    head = SIGNATURES[3] + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", following)
    content = head.ljust(600, b"\x07") + bytes(range(256))
    check(file, content, data.draw(st.sampled_from(POLICIES)), data.draw(st.booleans()))


@pytest.mark.parametrize("kind", [2, 3, 12])
def test_a_profile_of_the_wrong_type_is_refused(file, kind):
    """A TIFF's colour profile may come as text or numbers, which is not what a profile is read
    from.
    """
    tags = {tag: (4, 1, value) for tag, value in GOOD_TAGS.items()} | {273: (4, 1, 200), 34675: (kind, 3, 200)}
    entries = b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(tags.items()))
    content = SIGNATURES[3] + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    check(file, content.ljust(200, b"\0") + bytes(256), POLICIES[0], False)
    with pytest.raises(InputError, match="colour profile cannot be read"):
        load_image(file, POLICIES[0])


@fuzzed(60, width=st.integers(1, 2**16), height=st.integers(1, 2**16), kind=st.sampled_from(["bmp", "webp", "tiff"]))
def test_a_header_of_any_size_is_refused_without_memory_for_it(file, width, height, kind):
    content = bytearray(SAMPLES[kind][0] if kind != "webp" else SAMPLES[kind][1])
    if kind == "bmp":
        struct.pack_into("<ii", content, 18, width, height)
    elif kind == "webp":  # VP8X: 24 bits each, less one
        at = content.find(b"VP8X") + 12
        content[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    else:
        offset = struct.unpack_from("<I", content, 4)[0]
        for index in range(struct.unpack_from("<H", content, offset)[0]):
            entry = offset + 2 + 12 * index
            if (tag := struct.unpack_from("<H", content, entry)[0]) in (256, 257):
                struct.pack_into("<HHII", content, entry, tag, 4, 1, width if tag == 256 else height)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(file, bytes(content), POLICIES[1], True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
