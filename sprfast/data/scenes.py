"""A labelled set of real images for `sprfast demo`, cut from photographs that ship with
scikit-image.

One photograph of a brick wall is divided into horizontal bands, each of which belongs to one split,
so that no pixel of a test image is ever seen in training or calibration. Half of the test images
get one small defect drawn into them, of a kind in `KINDS`:

- `scratch`: a thin, curved, antialiased line, lighter or darker than what it crosses;
- `blob`: a small speckled stain with a soft edge;
- `paste`: a patch of another photograph with a feathered edge, its mean adapted to its
surroundings;
- `blur`: a patch out of focus.

The mask of a defect is the region it was drawn in, down to `MASK_COVERAGE` of opacity; outside it
the image is the clean crop bit for bit, inside it the mean change is at least `VISIBLE_CHANGE` grey
levels.

The photographs are read from the installed files, never downloaded.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sprfast.errors import BackendError, InputError
from sprfast.system import files

CATEGORY = "brick"  # the photograph, and the name of the category's folder
DONORS = ("grass", "gravel")  # photographs that `paste` takes patches of
PHOTO_SIDE = 512  # pixels, width and height of each photograph
CROP_SIDE = 64  # pixels of the photograph that one image shows; larger: finer texture in the image

# Rows of the photograph, [top, bottom). The wall recedes towards the top, so that splits alternate:
# test and calibration see the same mean scale, and training has neighbours above and below each of
# them.
BANDS = {
    "train": ((0, 96), (224, 320), (448, 512)),
    "calibrate": ((160, 224), (320, 384)),
    "test": ((96, 160), (384, 448)),
}
GOOD_IMAGES = {"train": 256, "calibrate": 100, "test": 60}
DEFECTIVE_IMAGES = 20  # of each kind

KINDS = ("scratch", "blob", "paste", "blur")

# Lengths are pixels of a 64x64 image and grow with the image; pairs are the ends of a uniform draw.
BORDER = 14.0  # from the centre of a defect to the image's border, at least
SCRATCH_LENGTH = (18.0, 30.0)
SCRATCH_WIDTH = (1.0, 1.6)
SCRATCH_CONTRAST = (45.0, 60.0)  # grey levels
BLOB_RADIUS = (5.0, 8.0)
BLOB_FEATHER = 2.0
BLOB_CONTRAST = (35.0, 50.0)  # grey levels
BLOB_GRAIN = 8.0  # grey levels, standard deviation of the stain from pixel to pixel
PASTE_RADIUS = (5.0, 7.0)  # half the side
PASTE_FEATHER = 1.5
BLUR_RADIUS = (7.0, 9.0)
BLUR_FEATHER = 0.8
BLUR_SIGMA = 4.0

MASK_COVERAGE = 0.25  # opacity below which nothing is drawn
VISIBLE_CHANGE = 12.0  # grey levels, mean over the mask; a drawing that changes less is drawn again elsewhere
DRAWINGS = 200  # attempts before a defect is given up
SUPERSAMPLING = 8  # of the scratch's antialiasing, in each direction

Gray = NDArray[np.uint8]  # (size, size)
Plane = NDArray[np.float64]  # (size, size)


@dataclasses.dataclass(frozen=True)
class Crop:
    """One image of the set: where it lies in the photograph and what becomes of it."""

    split: str  # a key of BANDS
    kind: str  # "good" or one of KINDS
    number: int  # counts from 0 in its folder
    left: int  # column of the photograph
    top: int  # row of the photograph

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in the photograph; right and bottom are outside."""
        return self.left, self.top, self.left + CROP_SIDE, self.top + CROP_SIDE

    @property
    def image_path(self) -> Path:
        """Path of the image, relative to the category's folder."""
        return Path(self.split, self.kind, f"{self.number:03d}.png")

    @property
    def mask_path(self) -> Path:
        """Path of the mask of a defective image, relative to the category's folder."""
        return Path("ground_truth", self.kind, f"{self.number:03d}_mask.png")


def write_scenes(folder: str | Path, *, size: int = 64, seed: int = 0) -> None:
    """Write the category `CATEGORY` in MVTec AD's layout below `folder`, the same bytes for the
    same arguments.

    The category holds `train/good`, `calibrate/good` (good images held back for the threshold),
    `test/good`, `test/<kind>` and `ground_truth/<kind>`: 8-bit grey PNGs of `size` x `size` pixels,
    masks 0 or 255. An earlier set of the same place is overwritten.

    Args:
        folder: root of the data set; made where it is missing.
        size: pixels of an image, 32 to 512; every image shows `CROP_SIDE` pixels of the photograph.
        seed: of the placing and the defects, 0 to 2**32 - 1.

    Raises:
        InputError: an argument out of range, a folder that cannot be written, or one that holds
            PNG files which are not of this set.
        BackendError: scikit-image, or a photograph that it ships, is missing.
    """
    if not 32 <= size <= 512:
        raise InputError(f"size: {size!r} is not allowed, expected 32 to 512 pixels")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed: {seed!r} is not allowed, expected 0 to 2**32 - 1")
    root = Path(folder) / CATEGORY
    contents = dict(_render(size, seed))
    foreign = sorted(path.relative_to(root) for path in root.rglob("*.png") if path.relative_to(root) not in contents)
    if foreign:
        raise InputError(f"{root}: holds {foreign[0]}, which is not of the demo; give another folder or empty this one")
    try:
        for parent in {path.parent for path in contents}:
            (root / parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{root}: cannot be made ({error.strerror})") from error
    for path, content in contents.items():
        files.write_bytes(root / path, content)


def plan_crops(seed: int = 0) -> list[Crop]:
    """Place every image of the set in the photograph; crops of different splits share no pixel.

    Within a split, crops are spread evenly over its bands, so that they overlap as little as their
    number allows. Good and defective test images are dealt from one shuffled pile.
    """
    rng = np.random.default_rng(seed)
    crops = []
    for split, bands in BANDS.items():
        kinds = ["good"] * GOOD_IMAGES[split]
        if split == "test":
            kinds += [kind for kind in KINDS for _ in range(DEFECTIVE_IMAGES)]
        corners = rng.permutation(_spread(bands, len(kinds), rng))
        for i, (kind, (left, top)) in enumerate(zip(kinds, corners.tolist(), strict=True)):
            crops.append(Crop(split, kind, i - kinds.index(kind), left, top))
    return crops


def load_photograph(name: str) -> Image.Image:
    """Read the 8-bit grey photograph `name`, `PHOTO_SIDE` pixels square, from the installed
    scikit-image.

    Raises:
        BackendError: scikit-image is missing, or this release of it does not ship the photograph.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise BackendError('scikit-image, whose photographs the demo uses, is missing: pip install "sprfast[demo]"')
    path = Path(spec.origin).parent / "data" / f"{name}.png"
    try:
        with Image.open(path) as image:
            photo = image.convert("L")
    except OSError as error:
        advice = 'pip install --force-reinstall "sprfast[demo]"'
        raise BackendError(f"{path}: this scikit-image has no such photograph: {advice}") from error
    if photo.size != (PHOTO_SIDE, PHOTO_SIDE):
        raise BackendError(f"{path}: {photo.size} pixels, expected {PHOTO_SIDE} a side as in scikit-image 0.26")
    return photo


def cut(photo: Image.Image, box: tuple[int, int, int, int], size: int) -> Gray:
    """`box` of `photo` as uint8 (size, size), resampled from the pixels inside the box alone."""
    return np.asarray(photo.crop(box).resize((size, size), Image.Resampling.LANCZOS))


def draw_defect(kind: str, clean: Gray, donor: Gray, rng: np.random.Generator) -> tuple[Gray, Gray]:
    """Draw one defect of `kind` (of `KINDS`) at a random place, at least `BORDER` inside the image.

    Args:
        kind: which defect.
        clean: uint8 (size, size), a good crop; not written to.
        donor: uint8 (size, size), a crop of another photograph, of which `paste` takes a patch.
        rng: the source of every random choice.

    Returns:
        The defective image and its mask (0 or 255), both uint8 (size, size).

    Raises:
        InputError: no visible defect was found in `DRAWINGS` attempts, as in a blur of a constant
            image.
    """
    before = clean.astype(np.float64)
    for _ in range(DRAWINGS):
        content, coverage = _PAINTERS[kind](before, donor.astype(np.float64), rng)
        drawn = coverage >= MASK_COVERAGE
        after = np.rint(np.clip(before + drawn * coverage * (content - before), 0.0, 255.0))
        if np.abs(after - before)[drawn].mean() >= VISIBLE_CHANGE:
            return after.astype(np.uint8), drawn.astype(np.uint8) * np.uint8(255)
    raise InputError(f"{kind}: no place where it changes {VISIBLE_CHANGE} grey levels, in {DRAWINGS} attempts")


def _spread(bands: tuple[tuple[int, int], ...], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(count, 2) corners (left, top): shared out by the bands' heights, evenly spaced from left to
    right, rows at random.
    """
    edges = np.cumsum([0, *(bottom - top for top, bottom in bands)])
    shares = np.diff(np.rint(edges * count / edges[-1]).astype(np.int64))
    lefts = [np.rint(np.linspace(0, PHOTO_SIDE - CROP_SIDE, share)).astype(np.int64) for share in shares]
    tops = [
        rng.integers(top, bottom - CROP_SIDE, share, endpoint=True)
        for share, (top, bottom) in zip(shares, bands, strict=True)
    ]
    return np.stack([np.concatenate(lefts), np.concatenate(tops)], axis=1)


def _render(size: int, seed: int) -> Iterator[tuple[Path, bytes]]:
    """Each file of the category: its relative path and its bytes."""
    photo = load_photograph(CATEGORY)
    donors = [load_photograph(name) for name in DONORS]
    for crop in plan_crops(seed):
        image = cut(photo, crop.box, size)
        if crop.kind != "good":
            # a stream of its own for each image: changing one kind leaves the others as they are
            rng = np.random.default_rng((seed, KINDS.index(crop.kind), crop.number))
            left, top = rng.integers(0, PHOTO_SIDE - CROP_SIDE, 2, endpoint=True).tolist()
            donor = cut(donors[crop.number % len(donors)], (left, top, left + CROP_SIDE, top + CROP_SIDE), size)
            image, mask = draw_defect(crop.kind, image, donor, rng)
            yield crop.mask_path, _png(mask)
        yield crop.image_path, _png(image)


def _png(image: Gray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def _scratch(clean: Plane, donor: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """A quadratic Bezier curve; the ends lie opposite each other, the middle is pulled to
    one side.
    """
    unit = len(clean) / 64
    angle, length = rng.uniform(0.0, 2.0 * np.pi), unit * rng.uniform(*SCRATCH_LENGTH)
    along = np.array([np.cos(angle), np.sin(angle)]) * length / 2.0
    bend = np.array([-along[1], along[0]]) * rng.uniform(-0.6, 0.6)
    s = np.linspace(-1.0, 1.0, 65)[:, None]
    curve = _centre(len(clean), rng) + s * along + (1.0 - s**2) * bend  # (65, 2): column, row
    canvas = Image.new("L", (SUPERSAMPLING * len(clean),) * 2)
    points = [(x, y) for x, y in (SUPERSAMPLING * (curve + 0.5)).tolist()]
    width = round(SUPERSAMPLING * unit * rng.uniform(*SCRATCH_WIDTH))
    ImageDraw.Draw(canvas).line(points, fill=255, width=width, joint="curve")
    return clean + _contrast(SCRATCH_CONTRAST, rng), np.asarray(canvas.reduce(SUPERSAMPLING)) / 255.0


def _blob(clean: Plane, donor: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    stain = _contrast(BLOB_CONTRAST, rng) + rng.normal(0.0, BLOB_GRAIN, clean.shape)
    return clean + stain, _patch(len(clean), BLOB_RADIUS, BLOB_FEATHER, 2.0, rng)


def _paste(clean: Plane, donor: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    coverage = _patch(len(clean), PASTE_RADIUS, PASTE_FEATHER, 4.0, rng)
    return donor + np.average(clean - donor, weights=coverage), coverage


def _blur(clean: Plane, donor: Plane, rng: np.random.Generator) -> tuple[Plane, Plane]:
    image = Image.fromarray(clean.astype(np.uint8)).filter(ImageFilter.GaussianBlur(BLUR_SIGMA * len(clean) / 64))
    return np.asarray(image, dtype=np.float64), _patch(len(clean), BLUR_RADIUS, BLUR_FEATHER, 2.0, rng)


_PAINTERS = {"scratch": _scratch, "blob": _blob, "paste": _paste, "blur": _blur}


def _patch(size: int, radius: tuple[float, float], feather: float, power: float, rng: np.random.Generator) -> Plane:
    """Opacity of a turned superellipse (power 2: ellipse, 4: rounded rectangle) that fades over
    `feather` inside its edge.
    """
    unit = size / 64
    a, b = unit * rng.uniform(*radius, 2)
    angle = rng.uniform(0.0, np.pi)
    x_centre, y_centre = _centre(size, rng)
    y, x = np.indices((size, size))
    u = np.cos(angle) * (x - x_centre) + np.sin(angle) * (y - y_centre)
    v = np.cos(angle) * (y - y_centre) - np.sin(angle) * (x - x_centre)
    r: Plane = (np.abs(u / a) ** power + np.abs(v / b) ** power) ** (1.0 / power)
    opacity: Plane = np.clip((1.0 - r) * min(a, b) / (feather * unit), 0.0, 1.0)
    return opacity


def _centre(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(2,) column and row."""
    border = BORDER * size / 64
    return rng.uniform(border, size - 1 - border, 2)


def _contrast(levels: tuple[float, float], rng: np.random.Generator) -> float:
    """Grey levels to add, darker or lighter with equal chance."""
    return float(rng.choice((-1.0, 1.0)) * rng.uniform(*levels))
