"""Batches without end, in an order that a resumed run takes up exactly where it was left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from ldmlab.types import Batch, ImageData, ImageSource

PIXELS_AT_ONCE = 2**20


class Flipped:
    """A source twice as long: its images, then the same images mirrored, with their maps and boxes."""

    def __init__(self, source: ImageSource):
        self.source = source

    def __len__(self) -> int:
        return 2 * len(self.source)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        n = len(self.source)
        batch = self.source.__getitems__([index % n for index in indices])
        mirrored = torch.tensor([index >= n for index in indices])
        for key in ("image", "semantic"):
            if key in batch:
                batch[key] = torch.where(
                    mirrored.reshape(-1, *[1] * (batch[key].ndim - 1)), batch[key].flip(-1), batch[key]
                )
        if "boxes" in batch:
            x0, y0, x1, y1 = batch["boxes"].unbind(-1)
            # where there is no box, zeros stay zeros
            moved = (mirrored[:, None] & (x1 > x0))[..., None]
            batch["boxes"] = torch.where(moved, torch.stack([1 - x1, y0, 1 - x0, y1], -1), batch["boxes"])
        return batch


def training_images(data: ImageData) -> ImageSource:
    """The train split, followed by its mirror images where the data is to be flipped."""
    images = data.split("train")
    return Flipped(images) if getattr(data, "flip", False) else images


class EndlessBatches(Sampler[list[int]]):
    """Index batches from one random order of the data after another, each seeded by (seed, pass).

    The stream runs through the end of a pass, so no image is dropped and a data set smaller than a batch works.
    `position` counts the batches served; set it to go on from there. With several processes each takes its own share
    of every global batch.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.position = 0

    def __len__(self) -> int:
        # as good as endless. Without a length Lightning fetches one batch ahead, which a checkpoint would count as
        # trained although it was not
        return 2**40

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.length, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        global_batch = self.batch_size * self.world_size
        epoch, offset = divmod(self.position * global_batch, self.length)
        order = self._order(epoch)
        while True:
            batch: list[int] = []
            while len(batch) < global_batch:
                if offset == self.length:
                    epoch, offset = epoch + 1, 0
                    order = self._order(epoch)
                taken = order[offset : offset + global_batch - len(batch)]
                batch += taken
                offset += len(taken)
            yield batch[self.rank :: self.world_size]


class ResumableLoader(DataLoader):
    """A loader over `EndlessBatches` whose state is the number of batches that training has taken.

    Counted where batches are taken, not where workers fetch them ahead.
    """

    def __init__(self, source: ImageSource, batches: EndlessBatches, num_workers: int):
        super().__init__(
            source,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # a generator of its own: the default would draw the workers' seed from the one that training uses
            generator=torch.Generator().manual_seed(batches.seed),
        )
        self.batches = batches
        self.taken = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.batches.position = self.taken
        for batch in super().__iter__():
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The number of batches taken."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the batches that were taken."""
        self.taken = state["taken"]


def _as_it_is(batch: Batch) -> Batch:
    return batch


def in_order(source: ImageSource, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """The rows `indices` of a source, in batches of at most `batch_size`."""
    for start in range(0, len(indices), batch_size):
        yield source.__getitems__(list(indices[start : start + batch_size]))


def images_at_once(image_size: int, at_most: int = 256) -> int:
    """How many images of a size an autoencoder is shown at once outside of training: those of 2^20 pixels.

    The wide layers of the sizes in papers take 10 kB and more a pixel.
    """
    return max(1, min(at_most, PIXELS_AT_ONCE // image_size**2))


def random_subset(length: int, size: int, seed: int) -> list[int]:
    """`size` different indices below `length` in random order, the same for the same arguments."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:size].tolist()
