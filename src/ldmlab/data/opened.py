"""Opening one image, whatever it is given as, and saying in one exception that it cannot be."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ldmlab.data.transforms import Frame, prepare

DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,  # what Pillow raises for a broken PNG
    EOFError,
    IndexError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class CorruptImage(Exception):
    """One image cannot be decoded; whether that stops the run is the caller's choice."""


def open_image(encoded: Any) -> Image.Image:
    """A Pillow image from its file's bytes, its path, its pixels (H, W, 3), or the dict of Hugging Face's `Image`."""
    if isinstance(encoded, dict):
        if encoded.get("bytes") is None and "::" in (encoded.get("path") or ""):
            # a member of an archive ("zip://a.jpg::/x.zip"), which only `datasets` knows how to open
            import datasets

            return datasets.Image().decode_example(encoded)
        encoded = encoded["bytes"] if encoded.get("bytes") is not None else encoded.get("path")
    if encoded is None:
        raise ValueError("the row holds no image")
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


@contextmanager
def decoding(what: str = "") -> Iterator[None]:
    """Turn whatever a broken image raises into a `CorruptImage`, whose message starts with `what`."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise CorruptImage(f"{what}not an image that Pillow can open") from error
    except DECODE_ERRORS as error:
        raise CorruptImage(what + (" ".join(str(error).split()) or type(error).__name__)) from error


def decode(encoded: Any, image_size: int) -> tuple[np.ndarray, Frame]:
    """Pixels of one image, uint8 (3, `image_size`, `image_size`), and how they were cut out of it.

    Raises:
        CorruptImage: the image cannot be decoded; the message says why.
    """
    with decoding(), open_image(encoded) as image:
        return prepare(image, image_size), Frame.of(image, image_size)
