"""What decoding a large file takes of memory, in a process of its own:

    python -m support.decoding_memory KIND PATH

prints bytes a pixel, as an input, as RGB and as a mask. PATH is written.
"""

import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from sprfast.config import Preprocessing
from sprfast.data.images import load_image, load_mask, read_rgb
from sprfast.system.libraries import require
from support.memory import peak
from support.pictures import picture, profile

SIDE = 1600
FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JPEG": ("JPEG", "RGB", {"subsampling": 0, "progressive": True}),
    "PNG": ("PNG", "RGB", {}),
    "alpha": ("PNG", "RGBA", {}),
    "grey alpha": ("PNG", "LA", {}),
    "palette": ("PNG", "P", {}),
    "16 bits": ("PNG", "I;16", {}),
    "TIFF": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "BMP": ("BMP", "RGB", {}),
    "WebP": ("WEBP", "RGB", {"method": 0}),
    "WebP without loss": ("WEBP", "RGB", {"method": 0, "lossless": True}),
    "WebP alpha": ("WEBP", "RGBA", {"method": 0}),
    "WebP alpha without loss": ("WEBP", "RGBA", {"method": 0, "lossless": True}),
    "profile": ("JPEG", "RGB", {"subsampling": 0, "icc_profile": profile("Display P3")}),
    "profile and alpha": ("PNG", "RGBA", {"icc_profile": profile("Display P3")}),
    "PGM": ("PPM", "L", {}),
    "PGM of 12 bits": ("PPM", "I;16", {}),
    "PPM": ("PPM", "RGB", {}),
    "HEIC": ("HEIF", "RGB", {"quality": 80}),
    "HEIC of full colour": ("HEIF", "RGB", {"quality": 80, "chroma": 444}),
    "HEIC in tiles": ("HEIF", "RGB", {"quality": 80, "tile_size": 512, "icc_profile": profile("Display P3")}),
    "HEIC alpha": ("HEIF", "RGBA", {"quality": 80}),
}


def write(kind: str, path: Path) -> None:
    """In a process of its own, since an encoder's memory would count."""
    name, mode, options = FILES[kind]
    if name == "HEIF":
        require("pillow_heif", "heic").register_heif_opener()
    values = np.repeat(np.repeat(picture(SIDE // 8, SIDE // 8, 4), 8, 0), 8, 1)
    if mode == "I;16":
        image = PIL.Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        image = PIL.Image.fromarray(values).convert("RGBA" if mode in ("RGBA", "LA") else "RGB").convert(mode)
    exif = PIL.Image.Exif()
    exif[274] = 6
    image.save(path, name, **options, **({} if name in ("BMP", "PPM") else {"exif": exif}))
    if kind == "PGM of 12 bits":
        content = path.read_bytes()
        start = len(content) - 2 * SIDE**2
        low = np.frombuffer(content, ">u2", offset=start) >> 4
        path.write_bytes(content[:start].replace(b"65535", b"4095") + low.astype(">u2").tobytes())


def main(kind: str, path: Path) -> None:
    writer = multiprocessing.get_context("fork").Process(target=write, args=(kind, path))
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    warnings.simplefilter("ignore")  # a mask that is mostly defective
    given = Preprocessing(size=16, alpha="composite")
    for read in (lambda: load_image(path, given), lambda: read_rgb(path, given), lambda: load_mask(path)):
        print(peak(read) / SIDE**2)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
