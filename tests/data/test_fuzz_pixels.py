"""Image files of any structure: refused, or the pixels that a second decoder finds in them.

Where something was taken out of a file, only the pixels of the whole one are right, since decoders
fill up what is missing.
"""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import strategies as st

from support.damaged_pictures import HOLD_MEMORY, check, encoded, flipped, ours, sides, smooth, taken
from support.fuzzing import fuzzed
from support.pictures import chunk, tagged_tiff

cv2 = pytest.importorskip("cv2")

SEEDS = st.integers(0, 2**32 - 1)
BESIDE_HEIC = 2**22  # libheif's decoder has threads and tables for each file


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """OpenCV logs each file that it refuses."""
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(0)
    yield
    cv2.utils.logging.setLogLevel(before)


PNG_KINDS = [
    (1, 0),
    (2, 0),
    (4, 0),
    (8, 0),
    (16, 0),
    (8, 2),
    (16, 2),
    (1, 3),
    (2, 3),
    (4, 3),
    (8, 3),
    (8, 4),
    (8, 6),
    (16, 6),
]
PASSES = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


def png_rows(random, width, height, bits, interlaced):
    """Random bytes behind random filters."""
    rows = []
    for left, across, top, down in PASSES if interlaced else ((0, 1, 0, 1),):
        columns, count = -(-(width - left) // across), -(-(height - top) // down)
        for _ in range(count if columns > 0 else 0):
            rows.append(bytes([random.integers(0, 5)]) + random.bytes((columns * bits + 7) // 8))
    return b"".join(rows)


@fuzzed(2000, seed=SEEDS)
def test_a_png_is_refused_or_its_pixels(seed):
    random = np.random.default_rng(seed)
    width, height = sides(random, 40)
    depth, colour = PNG_KINDS[random.integers(0, len(PNG_KINDS))]
    interlaced = bool(random.integers(0, 2))
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = png_rows(random, width, height, bits, interlaced)
    edit = random.choice(["none", "short", "long", "header", "kind", "interlaced", "cut", "order"])
    if edit == "short":
        rows = rows[: -int(random.integers(1, len(rows) + 1))]
    elif edit == "long":
        rows += random.bytes(int(random.integers(1, 50)))
    if edit == "header":
        width, height = max(1, width + int(random.integers(-2, 3))), max(1, height + int(random.integers(-2, 3)))
    elif edit == "kind":
        depth, colour = PNG_KINDS[random.integers(0, len(PNG_KINDS))]
    elif edit == "interlaced":
        interlaced = not interlaced
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    stream = zlib.compress(rows)
    cut = int(random.integers(0, len(stream)))
    chunks = [(b"IHDR", header)]
    if colour == 3:
        chunks.append(
            (b"PLTE", random.bytes(3 * int(random.choice([2**depth, 2**depth, random.integers(1, 2**depth + 1)]))))
        )
    if colour in (0, 2, 3) and random.random() < 0.3:
        length = {0: 2, 2: 6, 3: int(random.integers(1, 2**depth + 1))}[colour]
        high = struct.pack(f">{length // 2}H", *random.integers(0, 2**depth, length // 2)) if colour != 3 else None
        chunks.append((b"tRNS", high or random.bytes(length)))
    chunks += [(b"IDAT", stream[:cut]), (b"IDAT", b"" if edit == "cut" else stream[cut:])]
    if edit == "order":
        random.shuffle(chunks)
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")
    # OpenCV compares transparent values of grey in its own way
    accepted = (
        check(content, None, 1.0) if not any(name == b"tRNS" for name, _ in chunks) else ours(content) is not None
    )
    if edit in ("short", "long") or (edit == "cut" and stream[cut:]):
        assert not accepted


@fuzzed(2000, seed=SEEDS)
def test_a_jpeg_is_refused_or_its_pixels(seed):
    random = np.random.default_rng(seed)
    image = PIL.Image.fromarray(smooth(random, *sides(random, 70)))
    if random.random() < 0.25:
        image = image.convert("L")
    options = {"quality": int(random.integers(5, 101)), "progressive": bool(random.integers(0, 2))}
    options |= {"subsampling": int(random.integers(0, 3)), "optimize": bool(random.integers(0, 2))}
    if random.random() < 0.3:
        options["restart_marker_blocks"] = int(random.integers(1, 9))
    whole = encoded(image, "JPEG", **options)
    pixels, start = ours(whole), whole.index(b"\xff\xda")
    assert pixels is not None
    edit = random.choice(["none", "cut", "cut", "taken", "header", "data", "height", "scan"])
    if edit == "none":
        assert check(whole, None)
    elif edit == "cut":
        check(whole[: int(random.integers(start, len(whole) - 2))] + b"\xff\xd9", pixels)
    elif edit == "taken":
        check(taken(random, whole[:-2], start) + b"\xff\xd9", None)
    elif edit == "header":
        check(flipped(random, whole, 2, start + 14), None)
    elif edit == "data":
        check(flipped(random, whole, start, len(whole)), None)
    elif edit == "height":
        frame = b"\xff\xc2\0" if options["progressive"] else b"\xff\xc0\0"
        at = whole.index(frame + (b"\x0b\x08" if image.mode == "L" else b"\x11\x08")) + 5
        more = struct.unpack_from(">H", whole, at)[0] + int(random.integers(8, 40))
        assert (
            ours(whole[:at] + struct.pack(">H", more) + whole[at + 2 :]) is None or more <= -(-image.height // 16) * 16
        )
    else:
        scans = [at for at in range(start, len(whole)) if whole[at : at + 2] == b"\xff\xda"] + [len(whole) - 2]
        index = int(random.integers(0, len(scans) - 1))
        check(whole[: scans[index]] + whole[scans[index + 1] :], pixels)


TIFF_KINDS = [
    (1, 1, 1),
    (0, 1, 1),
    (1, 8, 1),
    (0, 8, 1),
    (1, 16, 1),
    (2, 8, 3),
    (2, 8, 3),
    (2, 16, 3),
    (1, 4, 1),
    (3, 8, 1),
]


def tiff_of(random):
    """Tags, content and the right pixels of a file that is well made."""
    height, width = sides(random, 40)
    white, bits, samples = TIFF_KINDS[random.integers(0, len(TIFF_KINDS))]
    values = random.integers(0, 2**bits, (height, width, samples))
    planar = samples > 1 and bool(random.integers(0, 2))
    tiled = bits >= 8 and max(height, width) < 40 and bool(random.integers(0, 2))
    down = 16 if tiled else int(random.integers(1, height + 1))
    across = 16 if tiled else width
    parts = []
    for plane in np.moveaxis(values, 2, 0)[..., None] if planar else [values]:
        padded = np.pad(plane, ((0, -height % down if tiled else 0), (0, -width % across), (0, 0)))
        for top in range(0, len(padded), down):
            for left in range(0, padded.shape[1], across):
                parts.append(packed(padded[top : top + down, left : left + across], bits))
    deflate = bool(random.integers(0, 2))
    parts = [zlib.compress(part) for part in parts] if deflate else parts
    offsets = [sum(map(len, parts[:index])) for index in range(len(parts))]
    tags = {
        256: [width],
        257: [height],
        258: [bits] * samples,
        259: [8 if deflate else 1],
        262: [white],
        277: [samples],
    }
    tags |= {284: [2 if planar else 1]} | ({322: [16], 323: [16]} if tiled else {278: [down]})
    tags |= {324 if tiled else 273: offsets, 325 if tiled else 279: [len(part) for part in parts]}
    right = values / 65535 if bits == 16 else values * (255 // (2**bits - 1))
    if white == 0:
        right = 255 - right
    if white == 3:
        colours = random.integers(0, 65536, (3, 256))
        tags |= {320: colours.ravel().tolist()}
        right = np.moveaxis((colours // 256)[:, values[..., 0]], 0, 2)
    return tags, b"".join(parts), np.broadcast_to(right, (height, width, 3))


def packed(values, bits):
    if bits >= 8:
        return values.astype("<u2" if bits == 16 else np.uint8).tobytes()
    each = np.unpackbits(values.astype(np.uint8).reshape(len(values), -1, 1), axis=-1)[..., 8 - bits :]
    return np.packbits(each.reshape(len(values), -1), axis=-1).tobytes()


@fuzzed(2000, seed=SEEDS)
def test_a_tiff_is_refused_or_its_pixels(seed):
    random = np.random.default_rng(seed)
    tags, content, right = tiff_of(random)
    edit = random.choice(["none", "none", "fewer", "smaller", "cut", "tag", "tag"])
    places = [tag for tag in (273, 279, 324, 325) if tag in tags]
    if edit == "none":
        assert check(tagged_tiff(tags, content), right) != (tags[258] == [16] * 3)
    elif edit == "fewer":
        for tag in random.choice(places, int(random.integers(1, 3)), replace=False):
            tags[int(tag)] = tags[int(tag)][: int(random.integers(1, len(tags[int(tag)]) + 1))]
        check(tagged_tiff(tags, content), right)
    elif edit == "smaller":
        counts = tags[places[1]]
        at = int(random.integers(0, len(counts)))
        counts[at] = int(random.integers(0, counts[at]))
        check(tagged_tiff(tags, content), right)
    elif edit == "cut":
        check(tagged_tiff(tags, content)[: -int(random.integers(1, len(content) + 1))], right)
    else:
        tag = int(random.choice([256, 257, 258, 262, 277, 278, 284, 266, 338, 339, 322, 323]))
        tags[tag] = [int(random.integers(0, 20)) for _ in range(int(random.choice([1, 1, 3])))]
        check(tagged_tiff(tags, content), None)


@fuzzed(2000, seed=SEEDS)
def test_a_bmp_is_refused_or_its_pixels(seed):
    random = np.random.default_rng(seed)
    width, height = sides(random, 40)
    bits = int(random.choice([1, 4, 8, 24, 32]))
    colours = int(random.choice([2**bits, random.integers(1, 2**bits + 1)])) if bits <= 8 else 0
    grey = np.linspace(0, 255, max(2, colours)).astype(np.uint8)[:colours]
    palette = np.stack([grey] * 3 + [grey * 0], -1) if random.random() < 0.5 else random.integers(0, 256, (colours, 4))
    rows = random.bytes((width * bits + 31) // 32 * 4 * height)
    start = 54 + 4 * colours
    sign = int(random.choice([1, 1, -1]))
    head = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
    head += struct.pack("<IiiHHIIiiII", 40, width, sign * height, 1, bits, 0, len(rows), 0, 0, colours, 0)
    content = head + palette.astype(np.uint8).tobytes() + rows
    edit = random.choice(["none", "cut", "header"])
    if edit == "none":
        used = max(colour for row in bmp_colours(rows, width, height, bits) for colour in row) if colours else -1
        if used < colours:  # decoders disagree about other colours
            assert check(content, None) or colours not in (0, 2**bits)
    elif edit == "cut":
        check(content[: -int(random.integers(1, len(rows) + 1))], ours(content))
    else:
        changed = flipped(random, content, 10, 54)
        if struct.unpack_from("<H", changed, 28)[0] > 8:
            check(changed, None, 9.0)  # decoders spread 5 bits to 8 in their own ways
        else:
            ours(changed)


def bmp_colours(rows, width, height, bits):
    values = np.frombuffer(rows, np.uint8).reshape(height, -1)
    if bits == 8:
        return values[:, :width]
    each = np.unpackbits(values[..., None], axis=-1).reshape(height, -1, bits)
    return (each @ (1 << np.arange(bits)[::-1]))[:, :width]


@fuzzed(2000, seed=SEEDS)
def test_a_webp_is_refused_or_its_pixels(seed):
    random = np.random.default_rng(seed)
    image = PIL.Image.fromarray(smooth(random, *sides(random, 70)))
    if random.random() < 0.3:
        image.putalpha(PIL.Image.fromarray(random.integers(0, 256, image.size[::-1], np.uint8)))
    lossless = bool(random.integers(0, 2))
    whole = encoded(image, "WEBP", lossless=lossless, quality=int(random.integers(0, 101)), method=0)
    pixels = ours(whole)
    assert pixels is not None
    edit = random.choice(["none", "cut", "flip"])
    if edit == "none":
        assert check(whole, None)
    elif edit == "cut" and whole[12:16] != b"VP8X":
        cut = bytearray(whole[: int(random.integers(30, max(31, len(whole) - 1))) // 2 * 2])
        struct.pack_into("<I", cut, 4, len(cut) - 8)
        struct.pack_into("<I", cut, 16, len(cut) - 20)
        check(bytes(cut), pixels)
    else:
        check(flipped(random, whole, 12, len(whole)), None)


@fuzzed(2000, seed=SEEDS)
def test_a_netpbm_is_refused_or_its_pixels(seed):
    random = np.random.default_rng(seed)
    height, width = sides(random, 40)
    maxval = int(random.choice([255, 65535, 4095, random.integers(1, 256), random.integers(256, 65536)]))
    colour = maxval < 256 and bool(random.integers(0, 2))
    values = random.integers(0, maxval + 1, (height, width, 3 if colour else 1))
    body = values.astype(np.uint8 if maxval < 256 else ">u2").tobytes()
    gaps = [b" ", b"\n", b"\r\n", b" # 5 7\n", b"\t"]
    fields = [b"P6" if colour else b"P5", *(b"%d" % each for each in (width, height, maxval))]
    head = b"".join(field + gaps[random.integers(0, len(gaps))] for field in fields[:3]) + fields[3] + b"\n"
    right = np.floor(values * 255 / maxval + 0.5) if maxval < 256 else values / maxval
    right = np.broadcast_to(right, (height, width, 3))
    edit = random.choice(["none", "cut", "longer", "header", "greater"])
    if edit == "none":
        assert check(head + body, right, 0.0)
    elif edit == "cut":
        assert ours((head + body)[: -int(random.integers(1, len(body) + 1))]) is None
    elif edit == "longer":
        assert ours(head + body + random.bytes(int(random.integers(1, 9)))) is None
    elif edit == "header":
        ours(flipped(random, head + body, 0, len(head)))
    elif maxval not in (255, 65535):
        step = 1 if maxval < 256 else 2
        at = step * int(random.integers(0, len(body) // step))
        above = int(random.integers(maxval + 1, 256**step)).to_bytes(step, "big")
        assert ours(head + body[:at] + above + body[at + step :]) is None


@fuzzed(240, seed=SEEDS)
def test_a_heic_is_refused_or_its_pixels(seed):
    """There is no second decoder here; what was saved without an edit has a test of its own."""
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif: pip install 'sprfast[heic]'")
    random = np.random.default_rng(seed)
    stream, pictures = io.BytesIO(), heif.HeifFile()
    pictures.add_from_pillow(PIL.Image.fromarray(smooth(random, *sides(random, 150))))
    tiles = {"tile_size": 64} if random.integers(0, 2) else {}
    pictures.save(stream, quality=int(random.integers(5, 101)), chroma=int(random.choice([420, 422, 444])), **tiles)
    whole = stream.getvalue()
    pixels, start = ours(whole, BESIDE_HEIC), whole.index(b"mdat") + 4
    assert pixels is not None
    edit = random.choice(["cut", "zeros", "header", "data"])
    at = int(random.integers(start, len(whole) - 4))
    if edit == "cut":
        assert ours(whole[:at], BESIDE_HEIC) is None
    elif edit == "zeros":
        assert ours(whole[:at] + bytes(len(whole) - at), BESIDE_HEIC) is None
    else:
        ours(flipped(random, whole, *((0, start) if edit == "header" else (start, len(whole)))), BESIDE_HEIC)


@pytest.mark.fuzz
@pytest.mark.parametrize("family", ["png", "jpeg", "tiff", "bmp", "webp", "netpbm", "heic"])
def test_no_file_takes_more_than_12_bytes_a_pixel(family):
    examples = 240 if family == "heic" else 2000
    test = f"{__file__}::test_a_{family}_is_refused_or_its_pixels[{examples}]"
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-W", "ignore", test]
    done = subprocess.run(command, env={**os.environ, HOLD_MEMORY: "1"}, capture_output=True, text=True, check=False)
    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout[-5000:]
