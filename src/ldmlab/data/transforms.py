"""From any image file to a square of 8-bit RGB pixels; maps and boxes of the image go the same way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF's orientations that exchange width and height."""


@dataclass(frozen=True)
class Frame:
    """How a picture becomes a square: the shorter side is resized to `size` pixels, and the centre cropped.

    The arithmetic is that of torchvision's `Resize` and `CenterCrop`.

    Attributes:
        width, height: of the picture as shown, in pixels.
        size: side of the square.
        orientation: EXIF's number for how the stored pixels were turned to be shown, 1 for not at all.
    """

    width: int
    height: int
    size: int
    orientation: int = 1

    @classmethod
    def of(cls, image: Image.Image, size: int) -> Frame:
        """The frame of a picture as it is stored, with its EXIF."""
        orientation = orientation_of(image)
        width, height = reversed(image.size) if orientation in QUARTER_TURNS else image.size
        return cls(width, height, size, orientation)

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height of the picture from which the square is cut."""
        shorter = min(self.width, self.height)
        return self.size * self.width // shorter, self.size * self.height // shorter

    @property
    def left_top(self) -> tuple[int, int]:
        """Where the square begins in it."""
        width, height = self.resized
        return round((width - self.size) / 2), round((height - self.size) / 2)

    def into_square(self, corners: np.ndarray) -> np.ndarray:
        """Corners x y x y (N, 4), relative to the picture's sides, relative to those of the square."""
        return (corners * [*self.resized, *self.resized] - [*self.left_top, *self.left_top]) / self.size


def orientation_of(image: Image.Image) -> int:
    """What the camera wrote into EXIF, 1 for upright."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says."""
    # exif_transpose copies the image even where there is nothing to turn, which would double the time for small files
    return image if orientation_of(image) == 1 else ImageOps.exif_transpose(image)


def turn_like(image: Image.Image, frame: Frame) -> Image.Image:
    """An image of the size that the frame's picture has before its EXIF exchanges width and height, turned likewise.

    Any other image is left as it is.
    """
    if frame.orientation in QUARTER_TURNS and frame.width != frame.height and image.size == (frame.height, frame.width):
        image.getexif()[ExifTags.Base.Orientation] = frame.orientation
        return ImageOps.exif_transpose(image)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture as a viewer on a white page sees it, in mode RGB.

    Transparency is composited on white, 16-bit greys keep their upper 8 bits, the orientation that the camera wrote
    into EXIF is applied.

    Raises:
        ValueError: mode `F`, whose floats have no agreed range, or a mode that Pillow cannot turn into RGB.
    """
    image = upright(image)
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

    The arithmetic is that of `Frame`. Sides that fit already are left bit-exact.
    """
    frame = Frame(*image.size, size)
    if frame.resized != image.size:
        image = image.resize(frame.resized, Image.Resampling.BICUBIC)
    if image.size != (size, size):
        left, top = frame.left_top
        image = image.crop((left, top, left + size, top + size))
    return image


def prepare(image: Image.Image, size: int) -> np.ndarray:
    """Pixels of the centre square, uint8 (3, `size`, `size`)."""
    return np.asarray(centre_square(to_rgb(image), size)).transpose(2, 0, 1)


def square_map(ids: np.ndarray, frame: Frame) -> np.ndarray:
    """Class ids (H, W) of a picture as shown, to those of its square (`frame.size`, `frame.size`).

    Ids are never mixed. Where the picture shrinks, each pixel of the square gets the class of most pixels under it, of
    equals that of the nearest to its centre; where it grows, the class of the nearest.
    """
    # A vote, because nearest neighbours would look at one pixel in a hundred where 1024 become 96: edges fray, a stray
    # pixel becomes a blotch, and the map no longer shows what the antialiased image does.
    (width, height), (left, top), size = frame.resized, frame.left_top, frame.size
    across, down = left + np.arange(size + 1), top + np.arange(size + 1)
    middle_row = (2 * down[:-1] + 1) * frame.height // (2 * height)
    middle_column = (2 * across[:-1] + 1) * frame.width // (2 * width)
    nearest = ids[np.ix_(middle_row, middle_column)]
    if width >= frame.width and height >= frame.height:
        return nearest
    rows, columns = _first_under(down, frame.height, height), _first_under(across, frame.width, width)
    present = np.flatnonzero(np.bincount(ids.ravel()))
    position = np.zeros(present[-1] + 1, dtype=np.int64)  # of each class among those present
    position[present] = np.arange(len(present))
    ballot_box = len(present) * np.repeat(np.arange(size), np.diff(columns))
    square = np.empty((size, size), dtype=ids.dtype)
    for y in range(size):
        under = position[ids[rows[y] : rows[y + 1], columns[0] : columns[-1]]] + ballot_box
        votes = 2 * np.bincount(under.ravel(), minlength=size * len(present)).reshape(size, -1)
        # half a vote more for the nearest: for the smaller id among equals, thin things would always lose to the sky
        votes[np.arange(size), position[nearest[y]]] += 1
        square[y] = present[votes.argmax(axis=1)]
    return square


def _first_under(places: np.ndarray, length: int, resized: int) -> np.ndarray:
    """The first pixel of a side of `length` whose centre lies under or after pixel `places` of it, once `resized`."""
    return -((resized - 2 * places * length) // (2 * resized))
