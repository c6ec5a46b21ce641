"""The interface of conditioners, and the one that says nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldmlab.types import Batch, Conditioning, DataInfo


class Conditioner(nn.Module):
    """Turns what a batch knows into a `Conditioning`.

    `vector_width` is the width D of the `vector` route that it fills, 0 if it leaves that route empty. `needs` names
    the entries of a batch that it reads, `classes` what they can say where that is a list of names.

    `drop` (B,) bool marks the samples that are to hear nothing. The training draws it once per sample for all
    conditioners together, so that the unconditional model is trained at the stated rate.
    """

    vector_width: int = 0
    needs: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of a batch."""
        raise NotImplementedError

    def null(self, batch_size: int, device: torch.device) -> Conditioning:
        """The conditioning of `batch_size` samples that hear nothing."""
        raise NotImplementedError

    @classmethod
    def problem_with(cls, data: DataInfo) -> str | None:
        """Why this conditioner cannot be trained on such data, in a few words; None if it can."""
        return None


class NoConditioner(Conditioner):
    """Says nothing: the unconditional model. Takes the data's description, as every conditioner does."""

    def __init__(self, data: DataInfo):
        super().__init__()

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The empty conditioning."""
        return Conditioning()

    def null(self, batch_size: int, device: torch.device) -> Conditioning:
        """The empty conditioning."""
        return Conditioning()
