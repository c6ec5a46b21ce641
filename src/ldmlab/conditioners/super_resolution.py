"""Super-resolution: told a small image, the model draws a large one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmlab.conditioners.base import Conditioner
from ldmlab.conditioners.degradations import DEGRADATIONS, degraded
from ldmlab.conditioners.seeds import drawn_seeds
from ldmlab.settings import require, require_counts
from ldmlab.types import Batch, Conditioning, DataInfo, LatentInfo


class SuperResolution(Conditioner):
    """The low-resolution image in the size of the latent, side by side with it (Rombach et al. 2022, section 4.4).

    Where it is larger than the latent its pixels are folded into channels, so that nothing of it is lost. One more
    channel says whether there is an image at all: a dropped one is zero, and says so.

    Args:
        data, latents: as for every conditioner.
        factor: how many times larger the result is.
        degradation: how training images are made small: "bicubic", or "blur_noise_jpeg", which suits small images of
            unknown origin (a simple form of Zhang et al. 2021, which the paper uses).
    """

    needs = ("image",)
    told = ("low_resolution",)

    def __init__(self, data: DataInfo, latents: LatentInfo, factor: int = 4, degradation: str = "bicubic"):
        super().__init__()
        require_counts(factor=factor)
        require(factor > 1, "factor", "a whole number above 1", factor)
        require(data.image_size % factor == 0, "factor", f"a divisor of the images' {data.image_size} pixels", factor)
        require(degradation in DEGRADATIONS, "degradation", f"one of {', '.join(DEGRADATIONS)}", degradation)
        self.factor, self.degradation, self.latent_factor = factor, degradation, latents.factor
        self.fold = math.ceil(latents.factor / factor)
        self.spatial_channels = 3 * self.fold**2 + 1

    def shrink(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) made small without chance, (B, 3, H / factor, W / factor)."""
        return degraded(images, self.factor, "bicubic", ())

    def tell(self, batch: Batch, seeds: Sequence[int] | None = None) -> Batch:
        """The images of a batch made small: `low_resolution` (B, 3, H / factor, W / factor)."""
        images = batch["image"]
        return {
            "low_resolution": degraded(images, self.factor, self.degradation, drawn_seeds(seeds, len(images))),
        }

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of `low_resolution` (B, 3, h', w'): `spatial` (B, C, h, w)."""
        small = batch["low_resolution"]
        size = [self.fold * (side * self.factor // self.latent_factor) for side in small.shape[2:]]
        if size != list(small.shape[2:]):
            small = F.interpolate(small, size=size, mode="bicubic", antialias=True)
        folded = F.pixel_unshuffle(small, self.fold)
        told = torch.ones_like(folded[:, :1])
        spatial = torch.cat([folded, told], dim=1)
        return Conditioning(spatial=spatial if drop is None else spatial * ~drop[:, None, None, None])
