"""In-painting: told an image with a hole, the model fills it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmlab.conditioners.base import Conditioner
from ldmlab.conditioners.masks import MASKS, random_mask
from ldmlab.conditioners.seeds import drawn_seeds
from ldmlab.settings import require
from ldmlab.types import Batch, Conditioning, DataInfo, LatentInfo


class InPainting(Conditioner):
    """The latent of the masked image and the mask, side by side with the noisy latent (Rombach et al. 2022, 4.5).

    The mask in the latents' size says how much of each of their positions is to be painted. Where that is all of it,
    the latent is zero, the mean of all. What is dropped is replaced by a mask of the whole image.

    Args:
        data, latents: as for every conditioner.
        masks: kinds of masks that training draws from, each as often: "box", "strokes", "half".
    """

    needs = ("image",)
    told = ("mask", "masked_image")
    encoded = ("masked_image",)

    def __init__(self, data: DataInfo, latents: LatentInfo, masks: Sequence[str] = tuple(MASKS)):
        super().__init__()
        known = len(masks) > 0 and all(kind in MASKS for kind in masks)
        require(known, "masks", f"a list of {', '.join(MASKS)}", masks)
        self.masks, self.factor = tuple(masks), latents.factor
        self.spatial_channels = latents.channels + 1

    def tell(self, batch: Batch, seeds: Sequence[int] | None = None) -> Batch:
        """A random `mask` for each image, and the image without what is behind it."""
        images = batch["image"]
        drawn = drawn_seeds(seeds, len(images))
        mask = torch.stack([random_mask(self.masks, seed, *images.shape[2:]) for seed in drawn]).to(images.device)
        return {"mask": mask, "masked_image": images.masked_fill(mask, 0.0)}

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of `mask` (B, 1, H, W), `masked_image_latent` (B, C, h, w): `spatial` (B, C + 1, h, w)."""
        latent = batch["masked_image_latent"]
        to_paint = F.avg_pool2d(batch["mask"].to(latent), self.factor)
        if drop is not None:
            to_paint = torch.where(drop[:, None, None, None], 1.0, to_paint)
        return Conditioning(spatial=torch.cat([latent * (to_paint < 1), to_paint], dim=1))

    def nothing(self, count: int, size: tuple[int, int]) -> Batch:
        """A mask of the whole image."""
        mask = torch.ones(count, 1, *size, dtype=torch.bool)
        return {"mask": mask, "masked_image": torch.zeros(count, 3, *size)}

    def finish(self, images: Tensor, batch: Batch) -> Tensor:
        """Sampled images in the masked part, the image that was told everywhere else."""
        return torch.where(batch["mask"], images, batch["masked_image"])
