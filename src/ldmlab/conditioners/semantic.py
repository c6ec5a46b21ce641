"""Semantic maps: what is where."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldmlab.conditioners.base import Conditioner
from ldmlab.settings import require, require_counts
from ldmlab.types import Batch, Conditioning, DataInfo, LatentInfo

MECHANISMS = ("concatenation", "cross_attention")


class SemanticMap(Conditioner):
    """A semantic map, rescaled to the size of the latents by a small network (Rombach et al. 2022, section 4.3.2).

    Each pixel's class has an embedding, and one more class stands for "not known": a dropped map consists of it.

    Args:
        data, latents: as for every conditioner.
        channels: of the rescaled map.
        width: of the layers that rescale.
        mechanism: "concatenation" to the noisy latent, or "cross_attention" to the map's positions as tokens, which
            learn where they are for the training size of images.
    """

    needs = told = ("semantic",)

    def __init__(
        self,
        data: DataInfo,
        latents: LatentInfo,
        channels: int = 8,
        width: int = 32,
        mechanism: str = "concatenation",
    ):
        super().__init__()
        require_counts(channels=channels, width=width)
        require(mechanism in MECHANISMS, "mechanism", f"one of {', '.join(MECHANISMS)}", mechanism)
        self.classes = data.semantic_classes
        self.unknown = len(data.semantic_classes)
        self.embedding = nn.Embedding(self.unknown + 1, width)
        halvings = round(math.log2(latents.factor))
        steps = [layer for _ in range(halvings) for layer in (nn.Conv2d(width, width, 4, 2, 1), nn.SiLU())]
        self.rescale = nn.Sequential(*steps, nn.Conv2d(width, channels, 1))
        self.position: nn.Parameter | None = None
        if mechanism == "cross_attention":
            side = data.image_size // latents.factor
            self.token_width = channels
            self.position = nn.Parameter(0.02 * torch.randn(side * side, channels))
        else:
            self.spatial_channels = channels

    @classmethod
    def problem_with(cls, data: DataInfo) -> str | None:
        """There must be semantic maps."""
        return None if data.semantic_classes else f"data '{data.name}' has no semantic maps"

    def nothing(self, count: int, size: tuple[int, int]) -> Batch:
        """Maps that are unknown everywhere."""
        return {"semantic": torch.full((count, *size), self.unknown)}

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of `semantic` int (B, H, W): `spatial` (B, channels, h, w), or as many tokens."""
        known = batch["semantic"]
        if drop is not None:
            known = torch.where(drop[:, None, None], self.unknown, known)
        rescaled = self.rescale(self.embedding(known).permute(0, 3, 1, 2))
        if self.position is None:
            return Conditioning(spatial=rescaled)
        return Conditioning(tokens=rescaled.flatten(2).transpose(1, 2) + self.position)
