"""What decoding a large file takes of memory, in a process of its own:

    python -m support.decoding_memory KIND PATH

prints bytes a pixel, as an input, as RGB and as a mask. PATH is written.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from sprfast.config import Preprocessing
from sprfast.data.images import load_image, load_mask, read_rgb
from support.memory import peak
from support.pictures import picture

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
}


def main(kind: str, path: Path) -> None:
    name, mode, options = FILES[kind]
    values = np.repeat(np.repeat(picture(SIDE // 8, SIDE // 8, 4), 8, 0), 8, 1)
    if mode == "I;16":
        image = PIL.Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    else:
        image = PIL.Image.fromarray(values).convert("RGBA" if mode in ("RGBA", "LA") else "RGB").convert(mode)
    exif = PIL.Image.Exif()
    exif[274] = 6
    image.save(path, name, **options, **({} if name == "BMP" else {"exif": exif}))
    del image, values
    warnings.simplefilter("ignore")  # a mask that is mostly defective
    given = Preprocessing(size=16, alpha="composite")
    for read in (lambda: load_image(path, given), lambda: read_rgb(path, given), lambda: load_mask(path)):
        print(peak(read) / SIDE**2)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
