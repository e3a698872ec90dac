"""Embedded colour profiles: which pictures are sRGB as they are, and how others become it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import PIL.Image
from PIL import ImageCms

from sprfast.config import ProfilePolicy
from sprfast.data.bands import bands
from sprfast.errors import InputError

_CLASSES = ("mntr", "scnr", "prtr", "spac")  # of profiles that say what an RGB value looks like
_MODES = ("RGB", "RGBA", "P", "PA")


def to_srgb(image: PIL.Image.Image, policy: ProfilePolicy) -> ImageCms.ImageCmsTransform | None:
    """What takes the picture's RGB pixels to sRGB; None where they count as they are: without a
    profile, with sRGB, and grey with gamma 2.2 or the sRGB curve.

    Raises:
        InputError: the profile cannot be read, is another one and `policy` is "refuse", or is not
            one of 8-bit RGB.
    """
    if "icc_profile" not in image.info:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"] or b""))
        description = ImageCms.getProfileDescription(profile).strip()
        space, kind = profile.profile.xcolor_space.strip(), profile.profile.device_class
    # ImportError: a Pillow built without littlecms
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError, ImportError) as error:
        raise InputError("its embedded colour profile cannot be read; convert the file to sRGB") from error
    if "srgb" in description.lower() or (space == "GRAY" and "gamma 2.2" in description.lower()):
        return None
    if policy == "refuse":
        raise InputError(f"embedded colour profile {description!r} is not accepted; convert the file to sRGB")
    if space != "RGB" or kind not in _CLASSES or image.mode not in _MODES:
        raise InputError(
            f"embedded colour profile {description!r} is not accepted: it is one of {space} in a picture of mode "
            f"{image.mode}, and only RGB profiles of 8-bit RGB are converted; convert the file to sRGB"
        )
    try:
        return ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError as error:
        raise InputError(
            f"embedded colour profile {description!r} cannot be converted; convert the file to sRGB"
        ) from error


def convert(planes: Sequence[PIL.Image.Image], transform: ImageCms.ImageCmsTransform) -> None:
    """Convert three planes of mode L where they are, band by band."""
    for top, red in bands(planes[0]):
        box = (0, top, red.width, top + red.height)
        band = PIL.Image.merge("RGB", [red, *(plane.crop(box) for plane in planes[1:])])
        for plane, channel in zip(planes, transform.apply(band).split(), strict=True):
            plane.paste(channel, box)
