"""Captions, read byte by byte by a transformer that is trained with the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.conditioners.base import Conditioner
from ldmlab.conditioners.transformer import token_transformer
from ldmlab.settings import require_counts
from ldmlab.types import Batch, Conditioning, DataInfo, LatentInfo

START, PADDING = 256, 257
"""The token that begins every caption, and the one that fills up short ones; the others are bytes."""


class Caption(Conditioner):
    """Common to all readers of captions: an empty caption says nothing, so what is dropped is replaced by one."""

    needs = told = ("caption",)

    @classmethod
    def problem_with(cls, data: DataInfo) -> str | None:
        """There must be captions."""
        return None if data.has_captions else f"data '{data.name}' has no captions"

    def nothing(self, count: int, size: tuple[int, int]) -> Batch:
        """Empty captions."""
        return {"caption": [""] * count}

    @staticmethod
    def heard(batch: Batch, drop: Tensor | None) -> list[str]:
        """The captions of a batch, those of dropped samples empty."""
        captions = batch["caption"]
        return (
            captions
            if drop is None
            else ["" if gone else text for text, gone in zip(captions, drop.tolist(), strict=True)]
        )


class Text(Caption):
    """A transformer over the bytes of a caption, trained with the model (Rombach et al. 2022, section 4.3.1, on BERT's
    tokens).

    Bytes need no vocabulary and no download and read any language. A convolution looks at each byte's neighbours first,
    so that the transformer has pieces of words to work with.

    Args:
        data, latents: as for every conditioner.
        width: of tokens.
        layers, heads: of the transformer.
        length: bytes that are read of a caption, the token at its start included; what is longer is cut off.
    """

    def __init__(
        self, data: DataInfo, latents: LatentInfo, width: int = 128, layers: int = 2, heads: int = 4, length: int = 128
    ):
        super().__init__()
        require_counts(length=length)
        self.token_width, self.length = width, length
        self.transformer = token_transformer(width, layers, heads)
        self.embedding = nn.Embedding(PADDING + 1, width, padding_idx=PADDING)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.neighbours = nn.Conv1d(width, width, 5, padding=2)

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """The conditioning of `caption`, B strings: `tokens` (B, T, width) with their mask, T as long as need be."""
        ids, mask = self.tokenize(self.heard(batch, drop))
        embedded = self.embedding(ids)
        # padding is zero before the convolution, so that the end of a caption looks the same in any batch
        near = self.neighbours(embedded.transpose(1, 2)).transpose(1, 2)
        tokens = embedded + F.gelu(near) + self.position[: ids.shape[1]]
        return Conditioning(tokens=self.transformer(tokens, src_key_padding_mask=~mask), token_mask=mask)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token numbers int64 (B, T), and where there are tokens bool (B, T), for B captions."""
        rows = [[START, *caption.encode("utf-8")[: self.length - 1]] for caption in captions]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows], device=self.position.device)
        return ids, ids != PADDING
