"""Images decoded once into a memory-mapped array on disk, or on demand where that array would be too large.

The cache of a split is a folder `<cache_dir>/images/<key>`:

| file | content |
|---|---|
| `images.npy` | uint8 (N, 3, S, S) |
| `semantic.npy` | uint8 or int16 (N, S, S), where there are semantic maps |
| `boxes.npy`, `box_labels.npy` | float32 (N, K, 4), int64 (N, K), where there are boxes |
| `labels.npy` | int64 (N,), where there are labels |
| `captions.json` | list of N strings, where there are captions |
| `left_out.json` | images that could not be decoded: list of [where, why] |

It is built under another name and renamed when complete, so that a folder of this name is always whole.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldmlab.data.cache_folder import create_array, make_once, new_folder
from ldmlab.data.encoded import EncodedSplit
from ldmlab.data.opened import CorruptImage, decode
from ldmlab.data.parallel import for_all_rows
from ldmlab.errors import UserError
from ldmlab.types import Batch, ImageSource

log = logging.getLogger(__name__)

CACHE_VERSION = 1
"""Part of every fingerprint; raise it when the pixels of the same files come out differently."""

ADVICE = "a smaller data.image_size, or data.max_cache_gb=0 to decode on demand"
"""What to do, beside freeing space, where the disk has no room for decoded images."""

NAMED_IN_WARNING = 10

FILES = {"image": "images.npy", "semantic": "semantic.npy", "boxes": "boxes.npy", "box_labels": "box_labels.npy"}
"""Where a cache keeps the arrays that decoding makes, by their keys in a batch."""


def to_unit_range(images: np.ndarray) -> torch.Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return torch.from_numpy(images).to(torch.float32).div_(127.5).sub_(1)


@dataclass(frozen=True)
class ArrayKind:
    """What decoding makes of each row: an array of this shape and type."""

    shape: tuple[int, ...]
    dtype: type[np.generic]

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def array_kinds(encoded: EncodedSplit, image_size: int) -> dict[str, ArrayKind]:
    """What decoding makes of each row of a split, by the keys of a batch."""
    kinds = {"image": ArrayKind((3, image_size, image_size), np.uint8)}
    if encoded.semantic is not None:
        kinds["semantic"] = ArrayKind((image_size, image_size), encoded.semantic.dtype)
    if encoded.boxes is not None:
        kinds["boxes"] = ArrayKind((encoded.boxes.max_boxes, 4), np.float32)
        kinds["box_labels"] = ArrayKind((encoded.boxes.max_boxes,), np.int64)
    return kinds


def decoded_rows(
    encoded: EncodedSplit, rows: Sequence[int], image_size: int
) -> Iterator[tuple[int, dict[str, np.ndarray] | CorruptImage]]:
    """Each of `rows` with its arrays, of `array_kinds`, or with what is wrong with it."""
    images = encoded.read(rows)
    maps = [None] * len(rows) if encoded.semantic is None else encoded.semantic.images.read(rows)
    for row, image, semantic in zip(rows, images, maps, strict=True):
        try:
            pixels, frame = decode(image, image_size)
            arrays = {"image": pixels}
            if encoded.semantic is not None:
                arrays["semantic"] = encoded.semantic.decode(semantic, frame)
            if encoded.boxes is not None:
                arrays["boxes"], arrays["box_labels"] = encoded.boxes.place(row, frame)
            yield row, arrays
        except CorruptImage as error:
            yield row, error


def to_batch(arrays: dict[str, np.ndarray]) -> Batch:
    """Decoded arrays of some rows, as a model takes them."""
    batch: Batch = {"image": to_unit_range(arrays["image"])}
    for key, dtype in (("semantic", torch.int64), ("boxes", torch.float32), ("box_labels", torch.int64)):
        if key in arrays:
            batch[key] = torch.from_numpy(arrays[key]).to(dtype)
    return batch


class DecodedImages:
    """A split read from its cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays = self._open()
        labels, captions = folder / "labels.npy", folder / "captions.json"
        self._labels = torch.from_numpy(np.load(labels)) if labels.exists() else None
        self._captions: list[str] | None = json.loads(captions.read_text()) if captions.exists() else None

    def _open(self) -> dict[str, np.ndarray]:
        paths = {key: self.folder / file for key, file in FILES.items()}
        # the plain view of the memmap: indexing the subclass costs more than the copy of a small batch
        return {key: np.asarray(np.load(path, mmap_mode="r")) for key, path in paths.items() if path.exists()}

    def __len__(self) -> int:
        return len(self._arrays["image"])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = np.asarray(indices, dtype=np.int64)
        batch = to_batch({key: array[rows] for key, array in self._arrays.items()})
        if self._labels is not None:
            batch["label"] = self._labels[torch.as_tensor(indices, dtype=torch.int64)]
        if self._captions is not None:
            batch["caption"] = [self._captions[index] for index in indices]
        return batch

    def __getstate__(self) -> dict[str, Any]:
        # a worker process gets the name of the files, not a copy of their content
        return {**self.__dict__, "_arrays": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrays = self._open()


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
        kinds = array_kinds(self._encoded, self._image_size)
        arrays = {key: np.empty((len(rows), *kind.shape), dtype=kind.dtype) for key, kind in kinds.items()}
        for position, (row, decoded) in enumerate(decoded_rows(self._encoded, rows, self._image_size)):
            if isinstance(decoded, CorruptImage):
                raise corrupt_error(self._encoded.describe(row), decoded) from decoded
            for key, array in decoded.items():
                arrays[key][position] = array
        batch = to_batch(arrays)
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
        key: digest of everything that the pixels, labels, captions, maps and boxes depend on.
        title: what messages call the split.
        corrupt: "stop" at an image that cannot be decoded, or "skip" it with a warning.
        max_cache_gb: largest cache of one split, in 10^9 bytes.

    Raises:
        UserError: an image is corrupt and `corrupt` is "stop"; no image can be decoded; the disk is full.
    """
    folder = cache_dir / "images" / key
    if not folder.exists():
        encoded = load()
        nbytes = len(encoded) * sum(kind.nbytes for kind in array_kinds(encoded, image_size).values())
        if nbytes > max_cache_gb * 1e9:
            return _on_demand(encoded, folder, title, image_size, corrupt)
        make_once(folder, lambda: _build(encoded, folder, nbytes, title, image_size, corrupt))
    _report_left_out(folder, title, corrupt)
    return DecodedImages(folder)


def corrupt_error(where: str, why: object) -> UserError:
    """The message for one image that cannot be decoded."""
    return UserError(
        f"corrupt image: {where} ({why}); repair or remove it, or leave such images out: data.corrupt=skip"
    )


def _build(encoded: EncodedSplit, folder: Path, nbytes: int, title: str, image_size: int, corrupt: str) -> None:
    with new_folder(folder, nbytes, ADVICE) as building:
        _decode_into(building, encoded, title, image_size, corrupt)


def _decode_into(folder: Path, encoded: EncodedSplit, title: str, image_size: int, corrupt: str) -> None:
    kinds = array_kinds(encoded, image_size)
    arrays = {
        key: create_array(folder / FILES[key], (len(encoded), *kind.shape), kind.dtype) for key, kind in kinds.items()
    }
    bad = decode_rows(encoded, image_size, arrays, corrupt, title)
    rows = np.setdiff1d(np.arange(len(encoded)), list(bad))
    if bad:
        if not len(rows):
            where, why = bad[0]
            raise UserError(f"{title}: none of the {len(encoded)} images can be decoded; the first is {where} ({why})")
        for key, kind in kinds.items():
            good = create_array(folder / "good.npy", (len(rows), *kind.shape), kind.dtype)
            for start in range(0, len(rows), 1024):
                good[start : start + 1024] = arrays[key][rows[start : start + 1024]]
            os.replace(folder / "good.npy", folder / FILES[key])
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

        def check() -> None:
            with new_folder(folder, 0, ADVICE) as building:
                bad = decode_rows(encoded, image_size, None, corrupt, title)
                np.save(building / "rows.npy", np.setdiff1d(rows, list(bad)))
                _write_left_out(building, bad)

        make_once(folder, check)
        rows = np.load(folder / "rows.npy")
        _report_left_out(folder, title, corrupt)
    return ImagesOnDemand(encoded, rows, image_size)


def decode_rows(
    encoded: EncodedSplit, image_size: int, arrays: dict[str, np.ndarray] | None, corrupt: str, title: str
) -> dict[int, tuple[str, str]]:
    """Decode every row into `arrays`, (N, ...) of each of `array_kinds`, if given; where and why rows are corrupt.

    Raises:
        UserError: at the first corrupt image if `corrupt` is "stop".
    """
    bad: dict[int, tuple[str, str]] = {}

    def decode_some(rows: range) -> None:
        for row, decoded in decoded_rows(encoded, rows, image_size):
            if isinstance(decoded, CorruptImage):
                if corrupt == "stop":
                    raise corrupt_error(encoded.describe(row), decoded) from decoded
                bad[row] = (encoded.describe(row), str(decoded))
            elif arrays is not None:
                for key, array in decoded.items():
                    arrays[key][row] = array

    for_all_rows(decode_some, len(encoded), f"Decoding {title}")
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
