"""Class labels, by a learned embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldmlab.conditioners.base import Conditioner
from ldmlab.settings import require, require_counts
from ldmlab.types import Batch, Conditioning, DataInfo, LatentInfo

MECHANISMS = ("vector", "cross_attention")


class ClassLabel(Conditioner):
    """A learned embedding for each class of the data, and one more for "no class".

    The null class is the last row of the table, whatever the number of classes.

    Args:
        data, latents: as for every conditioner.
        width: of the embedding.
        mechanism: "vector": beside the time embedding (Dhariwal and Nichol 2021); "cross_attention": as a single token
            (Rombach et al. 2022, section C).
    """

    needs = told = ("label",)

    def __init__(self, data: DataInfo, latents: LatentInfo, width: int = 128, mechanism: str = "vector"):
        super().__init__()
        require_counts(width=width)
        require(mechanism in MECHANISMS, "mechanism", f"one of {', '.join(MECHANISMS)}", mechanism)
        self.classes = data.class_names
        self.num_classes = data.num_classes
        self.as_token = mechanism == "cross_attention"
        if self.as_token:
            self.token_width = width
        else:
            self.vector_width = width
        self.embedding = nn.Embedding(data.num_classes + 1, width)
        # as small as the time embedding at the start, so that classes are learned as a correction to the mean image
        nn.init.normal_(self.embedding.weight, std=0.02)

    @classmethod
    def problem_with(cls, data: DataInfo) -> str | None:
        """Unlabelled data has no classes to be told."""
        return None if data.num_classes else f"data '{data.name}' has no class labels"

    def nothing(self, count: int, size: tuple[int, int]) -> Batch:
        """The null class."""
        return {"label": torch.full((count,), self.num_classes)}

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of `label` int (B,): `vector` (B, width) or `tokens` (B, 1, width)."""
        label = batch["label"]
        embedded = self.embedding(label if drop is None else torch.where(drop, self.num_classes, label))
        return Conditioning(tokens=embedded[:, None]) if self.as_token else Conditioning(vector=embedded)
