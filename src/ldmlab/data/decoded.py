"""Images decoded once into a memory-mapped array on disk, or on demand where that array would be too large.

The cache of a split is a folder `<cache_dir>/images/<key>`:

| file | content |
|---|---|
| `images.npy` | uint8 (N, 3, S, S) |
| `labels.npy` | int64 (N,), where there are labels |
| `captions.json` | list of N strings, where there are captions |
| `left_out.json` | images that could not be decoded: list of [where, why] |

It is built under another name and renamed when complete, so that a folder of this name is always whole.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from ldmlab.data.cache_folder import create_array, new_folder
from ldmlab.data.encoded import CorruptImage, EncodedSplit, decode
from ldmlab.errors import UserError
from ldmlab.types import Batch, ImageSource

log = logging.getLogger(__name__)

CACHE_VERSION = 1
"""Part of every fingerprint; raise it when the pixels of the same files come out differently."""

ADVICE = "a smaller data.image_size, or data.max_cache_gb=0 to decode on demand"
"""What to do, beside freeing space, where the disk has no room for decoded images."""

ROWS_PER_TASK = 64
PROGRESS_BAR_FROM = 5_000
NAMED_IN_WARNING = 10


def to_unit_range(images: np.ndarray) -> torch.Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return torch.from_numpy(images).to(torch.float32).div_(127.5).sub_(1)


class DecodedImages:
    """A split read from its cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images = self._open()
        labels, captions = folder / "labels.npy", folder / "captions.json"
        self._labels = torch.from_numpy(np.load(labels)) if labels.exists() else None
        self._captions: list[str] | None = json.loads(captions.read_text()) if captions.exists() else None

    def _open(self) -> np.ndarray:
        # the plain view of the memmap: indexing the subclass costs more than the copy of a small batch
        return np.asarray(np.load(self.folder / "images.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        batch: Batch = {"image": to_unit_range(self._images[np.asarray(indices, dtype=np.int64)])}
        if self._labels is not None:
            batch["label"] = self._labels[torch.as_tensor(indices, dtype=torch.int64)]
        if self._captions is not None:
            batch["caption"] = [self._captions[index] for index in indices]
        return batch

    def __getstate__(self) -> dict[str, Any]:
        # a worker process gets the name of the file, not a copy of its content
        return {**self.__dict__, "_images": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._images = self._open()


class ImagesOnDemand:
    """A split decoded anew for every batch, by whichever process asks: give the data loader workers.

    `rows` are the rows of `encoded` that take part, int64 (N,).
    """

    def __init__(self, encoded: EncodedSplit, rows: np.ndarray, image_size: int) -> None:
        self._encoded, self._rows, self._image_size = encoded, rows, image_size
        self._labels = None if encoded.labels is None else torch.from_numpy(encoded.labels)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = self._rows[np.asarray(indices, dtype=np.int64)].tolist()
        images = np.empty((len(rows), 3, self._image_size, self._image_size), dtype=np.uint8)
        for position, (row, image) in enumerate(zip(rows, self._encoded.read(rows), strict=True)):
            try:
                images[position] = decode(image, self._image_size)
            except CorruptImage as error:
                raise corrupt_error(self._encoded.describe(row), error) from error
        batch: Batch = {"image": to_unit_range(images)}
        if self._labels is not None:
            batch["label"] = self._labels[rows]
        if self._encoded.captions is not None:
            batch["caption"] = [self._encoded.captions[row] for row in rows]
        return batch


def open_split(
    load: Callable[[], EncodedSplit],
    *,
    key: str,
    title: str,
    image_size: int,
    cache_dir: Path,
    corrupt: str = "stop",
    max_cache_gb: float = 8.0,
) -> ImageSource:
    """The images of a split: from its cache, which is built first if need be, or on demand if it would be too large.

    Args:
        load: gives the encoded split; called only when there is no cache yet.
        key: digest of everything that the pixels, labels and captions depend on.
        title: what messages call the split.
        corrupt: "stop" at an image that cannot be decoded, or "skip" it with a warning.
        max_cache_gb: largest cache of one split, in 10^9 bytes.

    Raises:
        UserError: an image is corrupt and `corrupt` is "stop"; no image can be decoded; the disk is full.
    """
    folder = cache_dir / "images" / key
    if not folder.exists():
        encoded = load()
        nbytes = len(encoded) * 3 * image_size**2
        if nbytes > max_cache_gb * 1e9:
            return _on_demand(encoded, folder, title, image_size, corrupt)
        with new_folder(folder, nbytes, ADVICE) as building:
            _build(encoded, building, title, image_size, corrupt)
    _report_left_out(folder, title, corrupt)
    return DecodedImages(folder)


def corrupt_error(where: str, why: object) -> UserError:
    """The message for one image that cannot be decoded."""
    return UserError(
        f"corrupt image: {where} ({why}); repair or remove it, or leave such images out: data.corrupt=skip"
    )


def _build(encoded: EncodedSplit, folder: Path, title: str, image_size: int, corrupt: str) -> None:
    shape = (len(encoded), 3, image_size, image_size)
    images = create_array(folder / "images.npy", shape, np.uint8)
    bad = decode_rows(encoded, image_size, images, corrupt, title)
    rows = np.setdiff1d(np.arange(len(encoded)), list(bad))
    if bad:
        if not len(rows):
            where, why = bad[0]
            raise UserError(f"{title}: none of the {len(encoded)} images can be decoded; the first is {where} ({why})")
        good = create_array(folder / "good.npy", (len(rows), *shape[1:]), np.uint8)
        for start in range(0, len(rows), 1024):
            good[start : start + 1024] = images[rows[start : start + 1024]]
        os.replace(folder / "good.npy", folder / "images.npy")
    if encoded.labels is not None:
        np.save(folder / "labels.npy", encoded.labels[rows])
    if encoded.captions is not None:
        captions = [encoded.captions[row] for row in rows]
        (folder / "captions.json").write_text(json.dumps(captions, ensure_ascii=False), encoding="utf-8")
    _write_left_out(folder, bad)


def _on_demand(encoded: EncodedSplit, folder: Path, title: str, image_size: int, corrupt: str) -> ImagesOnDemand:
    rows = np.arange(len(encoded))
    if corrupt == "skip":
        # the length of a split must be known before training: one pass over all images, remembered, finds the bad ones
        folder = folder.with_name(f"{folder.name}-checked")
        if not folder.exists():
            with new_folder(folder, 0, ADVICE) as building:
                bad = decode_rows(encoded, image_size, None, corrupt, title)
                np.save(building / "rows.npy", np.setdiff1d(rows, list(bad)))
                _write_left_out(building, bad)
        rows = np.load(folder / "rows.npy")
        _report_left_out(folder, title, corrupt)
    return ImagesOnDemand(encoded, rows, image_size)


def decode_rows(
    encoded: EncodedSplit, image_size: int, images: np.ndarray | None, corrupt: str, title: str
) -> dict[int, tuple[str, str]]:
    """Decode every row into `images`, uint8 (N, 3, S, S), if given; return where and why rows are corrupt.

    Raises:
        UserError: at the first corrupt image if `corrupt` is "stop".
    """
    bad: dict[int, tuple[str, str]] = {}

    def decode_some(start: int) -> None:
        rows = range(start, min(start + ROWS_PER_TASK, len(encoded)))
        for row, image in zip(rows, encoded.read(rows), strict=True):
            try:
                pixels = decode(image, image_size)
            except CorruptImage as error:
                if corrupt == "stop":
                    raise corrupt_error(encoded.describe(row), error) from error
                bad[row] = (encoded.describe(row), str(error))
            else:
                if images is not None:
                    images[row] = pixels

    starts = range(0, len(encoded), ROWS_PER_TASK)
    # threads, not processes: Pillow releases the interpreter while it decodes and resizes
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        for _ in track(
            pool.map(decode_some, starts),
            description=f"Decoding {title}",
            total=len(starts),
            console=Console(stderr=True),
            disable=len(encoded) < PROGRESS_BAR_FROM,
        ):
            pass
    finally:
        # an error or Ctrl-C must not wait for the thousands of tasks that nobody needs any more
        pool.shutdown(cancel_futures=True)
    return bad


def _write_left_out(folder: Path, bad: dict[int, tuple[str, str]]) -> None:
    (folder / "left_out.json").write_text(json.dumps([bad[row] for row in sorted(bad)]), encoding="utf-8")


def _report_left_out(folder: Path, title: str, corrupt: str) -> None:
    left_out = json.loads((folder / "left_out.json").read_text(encoding="utf-8"))
    if not left_out:
        return
    if corrupt == "stop":
        raise corrupt_error(*left_out[0])
    named = "; ".join(f"{where} ({why})" for where, why in left_out[:NAMED_IN_WARNING])
    more = f"; and {len(left_out) - NAMED_IN_WARNING} more" if len(left_out) > NAMED_IN_WARNING else ""
    log.warning("%s: %d corrupt images left out: %s%s", title, len(left_out), named, more)
