"""Pictures with maps and boxes that the tests of data sets write."""

import io

import datasets
import numpy as np
from image_files import write_parquet
from PIL import Image

from ldmlab.data.parquet import ParquetImages

COLOURS = np.array([[40, 60, 200], [210, 40, 50], [60, 200, 70], [230, 220, 60]], dtype=np.uint8)
IMAGE = datasets.Image()
UNIT = [0.0, 0.0, 1.0, 1.0]
KINDS = datasets.List(datasets.ClassLabel(names=["cat", "dog", "fox"]))


def scene(width=48, height=32):
    """Class ids of a picture with a different object on each side, none of it symmetric."""
    ids = np.zeros((height, width), dtype=np.uint8)
    ids[height // 8 : height // 2, width // 4 : width // 2] = 1
    ids[height // 2 :, width // 2 : width * 5 // 8] = 2
    ids[height * 3 // 4 :, : width * 3 // 8] = 3
    return ids


def painted(ids):
    return Image.fromarray(COLOURS[ids])


def palette(ids):
    """A map whose colours have nothing to do with its class ids."""
    image = Image.fromarray(ids)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert image.mode == "P"
    return image


def stored(images):
    return [None if image is None else {"bytes": image, "path": None} for image in images]


def turned_by_exif(image, orientation):
    """A PNG whose EXIF says how it has to be turned to look like `image`."""
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.transpose(back).save(stream, "PNG", exif=exif)
    return stream.getvalue(), image.transpose(back)


def write(path, images, masks=None, features=None, **columns):
    if masks is not None:
        columns["mask"], features = stored(masks), {"mask": IMAGE, **(features or {})}
    return write_parquet(path, images, features, **columns)


def open_data(path, **options):
    folder = path if path.is_dir() else path.parent
    options = {"image_size": 8, "cache_dir": str(folder.parent / "cache"), **options}
    if path.is_file():  # then both splits are the file's own
        options = {"val_fraction": 0.5, **options}
    return ParquetImages(path=str(path), **options)


def batch_of(source):
    return source.__getitems__(list(range(len(source))))


def only(tmp_path, name="d", **content):
    """A data set whose two splits hold the same rows."""
    for split in ("train", "val"):
        write(tmp_path / name / f"{split}.parquet", **content)
    return tmp_path / name


def assert_aligned(image, semantic):
    """The nearest of the colours tells the class wherever the antialiased image is not in between two of them."""
    pixels = (image.permute(1, 2, 0).numpy() + 1) * 127.5
    away = np.linalg.norm(pixels[..., None, :] - COLOURS, axis=-1)
    clear = away.min(-1) < 12
    assert clear.mean() > 0.4
    assert np.array_equal(away.argmin(-1)[clear], semantic.numpy()[clear])
    assert len(np.unique(semantic.numpy()[clear])) > 1
