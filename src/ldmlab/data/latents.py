"""Latents encoded once, so that stage two never pays for the encoder.

A cache is a folder `<cache_dir>/latents/<key>`, the key being a digest of the autoencoder's weights, the data, the
split, the flip and what is kept. It holds a shard, a folder `00000`, `00001`, ..., for each process that encoded, with
the next N of the images in it; any number of processes and machines read all of them:

| file | content |
|---|---|
| `00000/mean.npy`, `00000/std.npy` | the posterior's moments, float16 (N, C, h, w), memory-mapped |
| `00000/<key>.npy` | what else the conditioner reads of a batch (`label`, `semantic`, ...), (N, ...) |
| `00000/caption.json` | list of N strings |
| `cost.json` | wall and CPU seconds that encoding took |

The moments are kept, not a draw: each step draws anew, as if it encoded the image again.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ldmlab import processes
from ldmlab.data.cache_folder import create_array, make_once, new_folder
from ldmlab.data.loader import images_at_once, in_order
from ldmlab.types import Batch, ImageSource

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (B, 3, H, W) in [-1, 1] -> the posterior's mean and std, both (B, C, h, w)."""

CACHE_VERSION = 3
CAPTIONS = "caption.json"
MOMENTS = {"mean": "latent_mean", "std": "latent_std"}  # what a batch calls them


class CachedLatents:
    """A source of latents: batches hold `latent_mean` and `latent_std` in place of `image`.

    `seconds` and `cpu_seconds` are what encoding took.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._open()

    def _open(self) -> None:
        shards = sorted(path for path in self.folder.iterdir() if path.is_dir())
        self._shards = [
            {path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in shard.glob("*.npy")} for shard in shards
        ]
        self._ends = np.cumsum([len(shard["mean"]) for shard in self._shards])
        cost = json.loads((self.folder / "cost.json").read_text("utf-8"))
        self.seconds, self.cpu_seconds = cost["seconds"], cost["cpu_seconds"]
        texts = [json.loads(path.read_text("utf-8")) for shard in shards for path in shard.glob(CAPTIONS)]
        self._captions: list[str] | None = [caption for text in texts for caption in text] if texts else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = np.asarray(indices, dtype=np.int64)
        where = np.searchsorted(self._ends, rows, side="right")
        batch: Batch = {}
        for name, example in self._shards[0].items():
            values = np.empty((len(rows), *example.shape[1:]), example.dtype)
            for number in np.unique(where):
                shard = self._shards[number][name]
                mine = where == number
                values[mine] = shard[rows[mine] - self._ends[number] + len(shard)]
            batch[MOMENTS.get(name, name)] = as_told(values)
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
    return tensor.float() if tensor.is_floating_point() else tensor.long()


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
    """The latents of `source`, from `folder` if it exists, else encoded into it; processes share the work.

    `keys` are the entries of a batch that are kept beside the moments: what the conditioner reads, and no more. The
    folder appears when it is complete, so an interrupted run leaves none. `progress(batches, count)` may wrap the
    iteration to show how far it is. Unless given, `batch_size` is as large as images of this size allow.

    Raises:
        UserError: the disk has no room for the cache.
    """
    make_once(folder, lambda: _encode_into(folder, source, encode, keys, batch_size, progress), together=True)
    return CachedLatents(folder)


def _encode_into(
    folder: Path,
    source: ImageSource,
    encode: Encode,
    keys: Sequence[str],
    batch_size: int | None,
    progress: Callable[[Iterable[Batch], int], Iterable[Batch]] | None,
) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    first = source.__getitems__([0])
    first_mean, _ = encode(first["image"])
    batch_size = batch_size or images_at_once(first["image"].shape[-1])
    start, end = (len(source) * part // processes.world_size() for part in (processes.rank(), processes.rank() + 1))
    batches: Iterable[Batch] = in_order(source, range(start, end), batch_size)
    if progress is not None:
        batches = progress(batches, -(-(end - start) // batch_size))
    kinds: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        name: (tuple(first_mean.shape[1:]), np.float16) for name in MOMENTS
    }
    kinds |= {key: (tuple(first[key].shape[1:]), kept_type(first[key])) for key in keys if key != "caption"}
    nbytes = len(source) * sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in kinds.values())
    with new_folder_for_all(folder, nbytes) as building:
        shard = building / f"{processes.rank():05d}"
        shard.mkdir()
        arrays = {
            name: create_array(shard / f"{name}.npy", (end - start, *shape), kind)
            for name, (shape, kind) in kinds.items()
        }
        captions: list[str] = []
        row = 0
        for batch in batches:
            batch["mean"], batch["std"] = encode(batch["image"])
            for name, values in arrays.items():
                values[row : row + len(batch["image"])] = batch[name].cpu().numpy()
            captions += batch["caption"] if "caption" in keys else []
            row += len(batch["image"])
        for values in arrays.values():
            cast(np.memmap, values.base).flush()  # for other machines, which do not see this one's memory
        if captions:
            (shard / CAPTIONS).write_text(json.dumps(captions, ensure_ascii=False), encoding="utf-8")
        spent = processes.gather_numbers([time.perf_counter() - wall, time.process_time() - cpu])
        cost = {"seconds": spent[:, 0].mean().item(), "cpu_seconds": spent[:, 1].sum().item()}
        if processes.rank() == 0:
            (building / "cost.json").write_text(json.dumps(cost), encoding="utf-8")


@contextmanager
def new_folder_for_all(folder: Path, nbytes: int) -> Iterator[Path]:
    """The first process's `new_folder`, for all of them; it is complete when the last one has left the body."""
    if processes.rank() > 0:
        yield processes.from_first(lambda: folder)
        processes.wait()
    else:
        with new_folder(folder, nbytes) as building:
            yield processes.from_first(lambda: building)
            processes.wait()
    processes.wait()
