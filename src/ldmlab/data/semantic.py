"""Semantic maps: images of one channel whose pixel values are class ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ldmlab.data.cache_folder import new_folder
from ldmlab.data.opened import CorruptImage, decoding, open_image
from ldmlab.data.parallel import for_all_rows
from ldmlab.data.transforms import SIXTEEN_BIT_MODES, Frame, square_map, turn_like, upright
from ldmlab.errors import UserError

LARGEST_ID = 2**15 - 1
"""Prepared maps are kept in 8 or 16 bits; larger numbers are depths or instances, not classes."""

READING = "semantic map: "
"""Start of what is said of a map that cannot be used."""

ONE_CHANNEL_MODES = ("1", "L", "P", *SIXTEEN_BIT_MODES)


class StoredImages(Protocol):
    """Encoded images, read by rows from 0 to `len - 1`."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[Any]:
        """The images of `rows`, each in any form that `open_image` takes. Called from several threads."""
        ...


@dataclass(frozen=True)
class SemanticMaps:
    """The maps of a split before decoding.

    Attributes:
        images: the maps as they are stored.
        num_classes: ids are 0, ..., `num_classes` - 1; a map with others counts as corrupt.
    """

    images: StoredImages
    num_classes: int

    @property
    def dtype(self) -> type[np.generic]:
        """The smallest type that holds the ids."""
        return np.uint8 if self.num_classes <= 256 else np.int16

    def decode(self, encoded: Any, frame: Frame) -> np.ndarray:
        """Class ids (`frame.size`, `frame.size`) of the square that was cut out of the image beside the map.

        A map is drawn over its image as shown. One of the size that the image has before EXIF turns it by 90 degrees
        was drawn over the stored pixels, and is turned with them.

        Raises:
            CorruptImage: the map cannot be decoded, is not of its image's size, or holds ids out of range.
        """
        with decoding(READING):
            with open_image(encoded) as image:
                _check_kind(image)
                shown = turn_like(upright(image), frame)
                if shown.size != (frame.width, frame.height):
                    raise ValueError(
                        f"{image.width} x {image.height} pixels, but its image has {frame.width} x {frame.height}"
                    )
                ids = _ids(shown)
            if ids.max() >= self.num_classes:
                raise ValueError(
                    f"class id {ids.max()}, but data.semantic_classes has {self.num_classes} classes, ids from 0 on"
                )
            return square_map(ids, frame)


def count_classes(load: Callable[[], Sequence[StoredImages]], *, folder: Path, where: str) -> int:
    """As many classes as the largest id in columns of maps asks for; remembered in `folder`, for all are decoded.

    What is wrong with single maps is for the decoding of their split to say, which knows where they lie.

    Args:
        load: gives the columns; called only where nothing is remembered.
        folder: made once the number is known; its name has to tell these maps from others.
        where: what messages call the columns.

    Raises:
        UserError: no map can be read.
    """
    file = "num_classes.json"
    if not folder.exists():
        largest: list[int] = []
        bad: list[str] = []

        def look(column: StoredImages, rows: range) -> None:
            for encoded in column.read(rows):
                try:
                    with decoding(), open_image(encoded) as image:
                        _check_kind(image)
                        largest.append(int(_ids(image).max()))
                except CorruptImage as error:
                    bad.append(str(error))

        for column in load():
            for_all_rows(partial(look, column), len(column), f"Looking for classes in {where}")
        if not largest:
            raise UserError(
                f"data.semantic_column: {where} has no map that can be read ({bad[0]}); choose another, or none"
            )
        with new_folder(folder, 0) as building:
            (building / file).write_text(str(max(largest) + 1), encoding="utf-8")
    return int((folder / file).read_text(encoding="utf-8"))


def _check_kind(image: Image.Image) -> None:
    if image.format == "JPEG":
        raise ValueError("a JPEG, whose compression mixes class ids; save maps as PNG")
    if image.mode not in ONE_CHANNEL_MODES:
        raise ValueError(
            f"mode {image.mode}, not one channel of class ids; save maps as PNG of mode L or P, or set "
            "data.semantic_column=none"
        )


def _ids(image: Image.Image) -> np.ndarray:
    ids = np.asarray(image)  # the pixels' numbers, also with a palette, whose colours are for the eye alone
    if ids.dtype == bool:
        ids = ids.astype(np.uint8)
    if ids.min() < 0 or ids.max() > LARGEST_ID:
        raise ValueError(f"pixels from {ids.min()} to {ids.max()}; class ids are 0 to {LARGEST_ID}")
    return ids
