"""Layouts: labelled boxes, as tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldmlab.conditioners.base import Conditioner
from ldmlab.conditioners.transformer import token_transformer
from ldmlab.settings import require_counts
from ldmlab.types import Batch, Conditioning, DataInfo, LatentInfo


class Layout(Conditioner):
    """A transformer over (label, box) tokens (Rombach et al. 2022, section 4.3.1, with boxes as numbers).

    A layout without boxes says nothing, so what is dropped is replaced by one; a token that begins every layout is all
    that is left of it.

    Args:
        data, latents: as for every conditioner.
        width: of tokens.
        layers, heads: of the transformer.
        frequencies: sines and cosines of each coordinate, from one period across the image up in octaves.
    """

    needs = told = ("boxes", "box_labels")

    def __init__(
        self,
        data: DataInfo,
        latents: LatentInfo,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        frequencies: int = 6,
    ):
        super().__init__()
        require_counts(frequencies=frequencies)
        self.token_width = width
        self.classes = data.box_classes
        self.transformer = token_transformer(width, layers, heads)
        self.label = nn.Embedding(len(data.box_classes), width)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.frequencies = frequencies
        self.box = nn.Sequential(nn.Linear(8 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    @classmethod
    def problem_with(cls, data: DataInfo) -> str | None:
        """There must be boxes."""
        return None if data.box_classes else f"data '{data.name}' has no boxes"

    def nothing(self, count: int, size: tuple[int, int]) -> Batch:
        """Layouts without boxes."""
        return {"boxes": torch.zeros(count, 1, 4), "box_labels": torch.full((count, 1), -1)}

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of `boxes` (B, K, 4) and `box_labels` (B, K): `tokens` (B, K + 1, width) with their mask."""
        boxes, labels = batch["boxes"], batch["box_labels"]
        present = labels >= 0
        if drop is not None:
            present = present & ~drop[:, None]
        octaves = 2 * math.pi * 2.0 ** torch.arange(self.frequencies, device=boxes.device)
        angles = (boxes[..., None] * octaves).flatten(2)
        where = self.box(torch.cat([angles.sin(), angles.cos()], dim=-1))
        tokens = where + self.label(labels.clamp(min=0))
        start = self.start.expand(len(tokens), 1, -1)
        mask = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
        said = self.transformer(torch.cat([start, tokens], dim=1), src_key_padding_mask=~mask)
        return Conditioning(tokens=said, token_mask=mask)
