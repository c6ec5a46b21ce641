"""Tiny image files that the tests of data sets write."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

CORRUPT = b"\x89PNG\r\n\x1a\n and then nothing of a PNG"


def picture(number: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """Random pixels that depend on `number` alone; `size` is (width, height)."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path: Path, images: list[bytes | None], features: dict | None = None, **columns: list) -> Path:
    """A Parquet file as `datasets` writes it: column `image`, and `columns` with types `features` or guessed ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"image": [None if image is None else {"bytes": image, "path": None} for image in images], **columns}
    table = datasets.Dataset.from_dict(content).cast_column("image", datasets.Image(decode=False))
    for name, feature in (features or {}).items():
        table = table.cast_column(name, feature)
    table.cast_column("image", datasets.Image()).to_parquet(path)
    return path


def pngs(count: int, first: int = 0) -> list[bytes]:
    return [png(picture(first + number)) for number in range(count)]


def pixels(number: int) -> np.ndarray:
    """What a split should give for `picture(number)`, float32 (3, 8, 8)."""
    return np.asarray(picture(number), dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - 1
