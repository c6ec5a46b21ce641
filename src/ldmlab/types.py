"""The data that travels between parts. Every part may import this file; it imports torch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Parameter groups -> optimiser; `conf/optimizer` builds one with everything but the parameters."""

Batch = dict[str, Any]
"""One batch of data, as the data loader yields it.

| key | value |
|---|---|
| `image` | float (B, 3, H, W) in [-1, 1] |
| `label` | int64 (B,), optional |
| `caption` | list of B strings, optional |
| `semantic` | int64 (B, H, W), optional |
| `boxes` | float (B, K, 4) in [0, 1], corners x0 y0 x1 y1, optional |
| `box_labels` | int64 (B, K), -1 where there is no box, optional |
| `low_resolution` | float (B, 3, h, w) in [-1, 1], told for super-resolution |
| `mask` | bool (B, 1, H, W), True where there is something to paint, told for in-painting |
| `masked_image` | float (B, 3, H, W) in [-1, 1], the image with zeros where the mask is True |

Cached latents take the place of `image` with `latent_mean` and `latent_std`, both float (B, C, h, w).
"""


@dataclass(frozen=True)
class DataInfo:
    """What a data set tells the rest of the lab about itself.

    `class_names` is empty for unlabelled data. `fingerprint` is a hexadecimal digest that changes whenever the
    images or their preparation change; caches are keyed by it.
    """

    name: str
    image_size: int
    fingerprint: str
    class_names: tuple[str, ...] = ()
    semantic_classes: tuple[str, ...] = ()
    box_classes: tuple[str, ...] = ()
    has_captions: bool = False

    @property
    def num_classes(self) -> int:
        """Number of class labels, 0 for unlabelled data."""
        return len(self.class_names)


@dataclass(frozen=True)
class LatentInfo:
    """The latents that a conditioner's maps are put beside: images shrunk by `factor`, with `channels` channels."""

    factor: int
    channels: int


class ImageSource(Protocol):
    """One split of a data set, read a batch at a time."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`, with whatever else the data set knows of them, as one batch."""
        ...


class ImageData(Protocol):
    """A data set: what a config in `conf/data` builds."""

    @property
    def info(self) -> DataInfo:
        """Name, size, classes and fingerprint; found without decoding images."""
        ...

    def split(self, name: str) -> ImageSource:
        """The split `name`, either "train" or "val"."""
        ...


class Oracle(Protocol):
    """Reads in an image of a data set what it shows: what `oracle()` of an `ImageData` gives, where it has one."""

    def scores(self, images: Tensor, told: Batch, entries: Sequence[str]) -> dict[str, Tensor]:
        """How well images (B, 3, H, W) in [-1, 1] show what `entries` of the batch `told` say: values (B,) in [0, 1].

        Named by entry and what of it is right, "caption_colour"; NaN where there is nothing to be right or wrong.
        """
        ...


@dataclass
class Conditioning:
    """What a model is told, by the route on which it enters the denoiser.

    | route | shape | enters by |
    |---|---|---|
    | `vector` | (B, D) | adaptive norm, beside the time embedding |
    | `tokens` | (B, T, D), with `token_mask` bool (B, T), True where there is a token | attention |
    | `spatial` | (B, C, h, w) | concatenation to the noisy latent |
    | `raw` | anything | nowhere: kept for the record |
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    token_mask: Tensor | None = None
    spatial: Tensor | None = None
    raw: dict[str, Any] = field(default_factory=dict)

    def concatenate(self, other: Conditioning) -> Conditioning:
        """Both conditionings as one batch (2B, ...); they must hold the same routes."""
        longest = max(0 if part.tokens is None else part.tokens.shape[1] for part in (self, other))
        parts = self.lengthened(longest), other.lengthened(longest)
        pairs = {name: tuple(getattr(part, name) for part in parts) for name in ROUTES}
        present: Any = {name: torch.cat(pair) for name, pair in pairs.items() if pair[0] is not None}
        return Conditioning(**present)

    def lengthened(self, length: int) -> Conditioning:
        """The same with `length` tokens, those that are new being masked."""
        if self.tokens is None or self.tokens.shape[1] == length:
            return self
        new = length - self.tokens.shape[1]
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, new)), token_mask=F.pad(self.heard(), (0, new)))

    def heard(self) -> Tensor:
        """Which tokens there are, bool (B, T); without a mask all of them."""
        assert self.tokens is not None
        if self.token_mask is not None:
            return self.token_mask
        return torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)


ROUTES = ("vector", "tokens", "token_mask", "spatial")
