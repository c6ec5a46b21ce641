"""Class labels, by a learned embedding on the vector route."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldmlab.conditioners.base import Conditioner
from ldmlab.types import Batch, Conditioning, DataInfo


class ClassLabel(Conditioner):
    """A learned embedding (B, width) for each class of the data, and one more for "no class".

    The null class is the last row of the table, whatever the number of classes.
    """

    needs = ("label",)

    def __init__(self, data: DataInfo, width: int = 128):
        super().__init__()
        self.classes = data.class_names
        self.num_classes = data.num_classes
        self.vector_width = width
        self.embedding = nn.Embedding(data.num_classes + 1, width)
        # as small as the time embedding at the start, so that classes are learned as a correction to the mean image
        nn.init.normal_(self.embedding.weight, std=0.02)

    @classmethod
    def problem_with(cls, data: DataInfo) -> str | None:
        """Unlabelled data has no classes to be told."""
        return None if data.num_classes else f"data '{data.name}' has no class labels"

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of `label` int (B,)."""
        label = batch["label"]
        told = label if drop is None else torch.where(drop, self.num_classes, label)
        return Conditioning(vector=self.embedding(told), raw={"label": label})

    def null(self, batch_size: int, device: torch.device) -> Conditioning:
        """The conditioning of `batch_size` samples without a class."""
        return Conditioning(vector=self.embedding(torch.full((batch_size,), self.num_classes, device=device)))
