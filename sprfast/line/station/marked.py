"""Pictures that somebody has marked as good, as files of one folder for `calibrate`."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from sprfast.data.folders import IMAGE_SUFFIXES
from sprfast.data.images import ChannelOrder, display_name
from sprfast.errors import InputError
from sprfast.system import files
from sprfast.system.reading import open_regular


class MarkedGood:
    """A folder of pictures as the camera gave them, without loss; each is named after its content,
    so that one which is marked twice is there once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> set[str]:
        """Of the pictures that are marked."""
        try:
            return {each for each in os.listdir(self.folder) if os.path.splitext(each)[1].lower() in IMAGE_SUFFIXES}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise InputError(f"{display_name(self.folder)}: the folder cannot be read ({error.strerror})") from error

    def add(self, image: Any, order: ChannelOrder | None) -> str:
        """Keep a picture; the name of its file.

        Raises:
            InputError: it has no form that a file can hold as it is, has been moved, or the folder
                cannot be written.
        """
        content, suffix = _content(image, order)
        name = f"good-{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
        with files.output_folder(self.folder):
            files.write_bytes(self.folder / name, content)
        return name

    def remove(self, name: str) -> None:
        """Let go of one that was marked by mistake."""
        files.confined(self.folder, name).unlink(missing_ok=True)


def _content(image: Any, order: ChannelOrder | None) -> tuple[bytes, str]:
    """What the file holds, and its suffix."""
    if isinstance(image, str | os.PathLike):
        try:
            with open_regular(Path(image)) as stream:
                return stream.read(), os.path.splitext(image)[1].lower()
        except OSError as error:
            raise InputError(f"{display_name(image)}: cannot be read ({error.strerror})") from error
    grey = isinstance(image, np.ndarray) and (image.ndim == 2 or image.shape[2:] == (1,))
    if not isinstance(image, np.ndarray) or not (image.dtype == np.uint8 or (image.dtype == np.uint16 and grey)):
        form = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"image: {form} cannot be kept, expected 8 bits, or 16 bits of grey")
    pixels = image.reshape(image.shape[:2]) if grey else image[..., ::-1] if order == "bgr" else image
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue(), ".png"
