"""The LightningDataModule: an endless, resumable stream of training batches from any source."""

from __future__ import annotations

import lightning as L

from ldmlab.data.loader import EndlessBatches, ResumableLoader
from ldmlab.types import ImageSource


class ImageDataModule(L.LightningDataModule):
    """Feeds a stage from `source`: images for the autoencoder, images or cached latents for diffusion.

    `batch_size` is that of each process. Quality is not measured in a validation loop but by the tasks, over a fixed
    set of validation images, so there is no other loader.
    """

    def __init__(self, source: ImageSource, batch_size: int, seed: int, num_workers: int = 0):
        super().__init__()
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.num_workers = num_workers

    def train_dataloader(self) -> ResumableLoader:
        """Batches without end."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batches = EndlessBatches(len(self.source), self.batch_size, self.seed, rank, world_size)
        return ResumableLoader(self.source, batches, self.num_workers)
