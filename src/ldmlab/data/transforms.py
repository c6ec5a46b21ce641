"""From any image file to a square of 8-bit RGB pixels."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image, ImageOps

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer on a white page sees it, in mode RGB.

    Transparency is composited on white, 16-bit greys keep their upper 8 bits, the orientation that the camera wrote
    into EXIF is applied.

    Raises:
        ValueError: mode `F`, whose floats have no agreed range, or a mode that Pillow cannot turn into RGB.
    """
    # exif_transpose copies the image even where there is nothing to turn, which would double the time for small files
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in SIXTEEN_BIT_MODES:
        # Pillow's own conversion clips at 255, which turns a 16-bit picture white
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floats (mode F) without a known range")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` pixels (bicubic with antialias) and crop the centre to (`size`, `size`).

    The arithmetic is that of torchvision's `Resize` and `CenterCrop`. Sides that fit already are left bit-exact.
    """
    width, height = image.size
    shorter = min(width, height)
    if shorter != size:
        width, height = (size * side // shorter for side in (width, height))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if (width, height) != (size, size):
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return image


def prepare(image: Image.Image, size: int) -> np.ndarray:
    """Pixels of the centre square, uint8 (3, `size`, `size`)."""
    return np.asarray(centre_square(to_rgb(image), size)).transpose(2, 0, 1)
