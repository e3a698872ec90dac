"""Pictures to encode and to damage, and what our decoder and a second one find in them."""

import io
import os
import time

import numpy as np
import pytest

from sprfast.config import Preprocessing
from sprfast.data.decoding import planes
from sprfast.errors import InputError
from support.memory import peak
from support.pictures import stacked

cv2 = pytest.importorskip("cv2")

HOLD_MEMORY = "HOLD_MEMORY"  # in the environment: memory is held to its bound, in a process of its own
GIVEN = Preprocessing(size=16, alpha="composite")
BYTES_PER_PIXEL, BYTES_BESIDE = 12, 2**21  # that decoding may take


def smooth(random, height, width):
    """Something that compresses, with edges and noise."""
    rows, columns = np.indices((height, width))
    waves = [np.sin(rows * random.uniform(0, 0.5) + columns * random.uniform(0, 0.5)) for _ in range(3)]
    pixels = 127 + 80 * np.stack(waves, -1) + random.normal(0, random.choice([0, 2, 20]), (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def sides(random, limit):
    """Height and width; of one picture in a hundred so long that its memory can be told."""
    return (int(value) for value in random.integers(*((1200, 1800) if random.random() < 0.01 else (1, limit)), 2))


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def ours(content, beside=BYTES_BESIDE):
    """The pixels (H, W, 3), or None where the file is refused; within the bounds of time and
    memory.
    """
    pixels = 0

    def sized(height, width):
        nonlocal pixels
        pixels = height * width

    def read():
        try:
            return planes(io.BytesIO(content), GIVEN, None, sized)
        except InputError:
            return None

    limit = 1 + len(content) / 2**20
    for _ in range(3):  # a busy machine counts for this thread what it gave to others
        began = time.thread_time()
        found = read()
        took = time.thread_time() - began
        if took < limit:
            break
    assert took < limit
    if HOLD_MEMORY in os.environ:
        assert peak(read) <= BYTES_PER_PIXEL * pixels + beside
    return None if found is None else stacked(found)


def seconds(content):
    """What OpenCV finds, in the same form; None where it cannot tell."""
    try:
        found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if found is None:
        return None
    if found.ndim == 2:
        found = np.stack([found] * 3, -1)
    elif found.shape[2] == 4:
        found = found[..., :3] * (found[..., 3:] / 255)
    found = found[..., ::-1]
    return found / 65535 if found.dtype == np.uint16 else found


def check(content, whole, tolerance=1.0):
    """`whole`: the pixels of which something was taken out; None: nothing was."""
    found = ours(content)
    if found is None:
        return False
    expected = seconds(content) if whole is None else whole
    if expected is None:
        return True
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).max() <= (tolerance if found.dtype == np.uint8 else 1e-6)
    return True


def taken(random, content, start=0):
    """Without some of its bytes from `start` on, at its end or anywhere."""
    at = int(random.integers(start, len(content)))
    end = len(content) if random.random() < 0.5 else at + int(random.integers(1, 40))
    return content[:at] + content[end:]


def flipped(random, content, start, end):
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        changed[int(random.integers(start, max(start + 1, min(end, len(changed)))))] = int(random.integers(0, 256))
    return bytes(changed)
