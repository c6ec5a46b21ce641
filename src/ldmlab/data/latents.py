"""Latents encoded once, so that stage two never pays for the encoder.

A cache is a folder `<cache_dir>/latents/<key>`, the key being a digest of the autoencoder's weights, the data, the
split, the flip and what is kept:

| file | content |
|---|---|
| `mean.npy`, `std.npy` | the posterior's moments, float16 (N, C, h, w), memory-mapped |
| `<key>.npy` | what else the conditioner reads of a batch (`label`, `semantic`, ...), (N, ...) |
| `caption.json` | list of N strings |
| `cost.json` | wall and CPU seconds that encoding took |

The moments are kept, not a draw: each step draws anew, as if it encoded the image again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldmlab.data.cache_folder import create_array, new_folder
from ldmlab.data.loader import images_at_once, in_order
from ldmlab.types import Batch, ImageSource

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (B, 3, H, W) in [-1, 1] -> the posterior's mean and std, both (B, C, h, w)."""

CACHE_VERSION = 2


class CachedLatents:
    """A source of latents: batches hold `latent_mean` and `latent_std` in place of `image`.

    `seconds` and `cpu_seconds` are what encoding took.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open()

    def _open(self) -> None:
        def mapped(name: str) -> np.ndarray:
            return np.asarray(np.load(self.folder / name, mmap_mode="r"))

        self._mean, self._std = mapped("mean.npy"), mapped("std.npy")
        others = [path for path in self.folder.glob("*.npy") if path.name not in ("mean.npy", "std.npy")]
        self._others = {path.stem: mapped(path.name) for path in others}
        cost = json.loads((self.folder / "cost.json").read_text("utf-8"))
        self.seconds, self.cpu_seconds = cost["seconds"], cost["cpu_seconds"]
        captions = self.folder / "caption.json"
        self._captions: list[str] | None = json.loads(captions.read_text("utf-8")) if captions.exists() else None

    def __len__(self) -> int:
        return len(self._mean)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = np.asarray(indices, dtype=np.int64)
        batch: Batch = {
            "latent_mean": torch.from_numpy(self._mean[rows]).float(),
            "latent_std": torch.from_numpy(self._std[rows]).float(),
        }
        batch |= {key: as_told(values[rows]) for key, values in self._others.items()}
        if self._captions is not None:
            batch["caption"] = [self._captions[index] for index in indices]
        return batch

    def __getstate__(self) -> dict[str, Path]:
        # a worker process opens the files itself
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.folder = state["folder"]
        self._open()


def kept_type(values: Tensor) -> type:
    """How a cache keeps entries of a batch: class numbers, of which maps have as many as pixels, in two bytes each."""
    if values.is_floating_point():
        return np.float32
    return np.int16 if values.ndim > 2 else np.int64


def as_told(values: np.ndarray) -> Tensor:
    """What a cache keeps, in the types of a batch."""
    tensor = torch.from_numpy(values)
    return tensor if tensor.is_floating_point() else tensor.long()


class WithImages:
    """Latents beside the images that they were encoded from, for models that are told something of them."""

    def __init__(self, latents: ImageSource, images: ImageSource):
        self.latents, self.images = latents, images

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return {**self.images.__getitems__(indices), **self.latents.__getitems__(indices)}


def latents_key(
    autoencoder_fingerprint: str, data_fingerprint: str, split: str, flip: bool, keys: Sequence[str]
) -> str:
    """The name of a cache: a digest of everything that its content depends on."""
    parts = json.dumps([CACHE_VERSION, autoencoder_fingerprint, data_fingerprint, split, flip, sorted(keys)])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def cache_latents(
    source: ImageSource,
    encode: Encode,
    folder: Path,
    keys: Sequence[str] = (),
    batch_size: int | None = None,
    progress: Callable[[Iterable[Batch], int], Iterable[Batch]] | None = None,
) -> CachedLatents:
    """The latents of `source`, from `folder` if it exists, else encoded into it.

    `keys` are the entries of a batch that are kept beside the moments: what the conditioner reads, and no more. The
    folder appears when it is complete, so an interrupted run leaves none. `progress(batches, count)` may wrap the
    iteration to show how far it is. Unless given, `batch_size` is as large as images of this size
    allow.

    Raises:
        UserError: the disk has no room for the cache.
    """
    if folder.exists():
        return CachedLatents(folder)
    wall, cpu = time.perf_counter(), time.process_time()
    first = source.__getitems__([0])
    first_mean, _ = encode(first["image"])
    batch_size = batch_size or images_at_once(first["image"].shape[-1])
    batches: Iterable[Batch] = in_order(source, range(len(source)), batch_size)
    if progress is not None:
        batches = progress(batches, -(-len(source) // batch_size))
    shape = (len(source), *first_mean.shape[1:])
    kinds = {key: ((len(source), *first[key].shape[1:]), kept_type(first[key])) for key in keys if key != "caption"}
    nbytes = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in kinds.values())
    with new_folder(folder, nbytes=2 * 2 * int(np.prod(shape)) + nbytes) as building:
        mean = create_array(building / "mean.npy", shape, np.float16)
        std = create_array(building / "std.npy", shape, np.float16)
        others = {key: create_array(building / f"{key}.npy", *kind) for key, kind in kinds.items()}
        captions: list[str] = []
        start = 0
        for batch in batches:
            batch_mean, batch_std = encode(batch.pop("image"))
            stop = start + len(batch_mean)
            mean[start:stop] = batch_mean.cpu().numpy()
            std[start:stop] = batch_std.cpu().numpy()
            captions += batch["caption"] if "caption" in keys else []
            for key, values in others.items():
                values[start:stop] = batch[key].numpy()
            start = stop
        cost = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        (building / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
        if captions:
            (building / "caption.json").write_text(json.dumps(captions, ensure_ascii=False), encoding="utf-8")
    return CachedLatents(folder)
