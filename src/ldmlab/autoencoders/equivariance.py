"""Equivariant latents: turned or shrunk latents decode to the turned or shrunk image (Kouzelis et al. 2025, EQ-VAE).

Latents with this property are smoother and of a simpler spectrum, which makes them easier to diffuse; it costs nothing,
as a reconstruction of the moved image takes the place of the usual one in some of the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmlab.settings import check_types, require


@dataclass(frozen=True)
class Move:
    """A quarter turn `turns` times, then a change of size to `size` latent positions a side; the same for images."""

    turns: int
    size: tuple[int, int]

    def latents(self, latents: Tensor) -> Tensor:
        """Moved latents (B, C, h', w')."""
        return self._move(latents, 1)

    def images(self, images: Tensor, downsampling_factor: int) -> Tensor:
        """Images (B, 3, H, W), moved as their latents are."""
        return self._move(images, downsampling_factor)

    def _move(self, x: Tensor, scale: int) -> Tensor:
        x = torch.rot90(x, self.turns, (2, 3))
        size = [side * scale for side in self.size]
        if list(x.shape[2:]) == size:
            return x
        return F.interpolate(x, size, mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Equivariance:
    """Draws moves for training.

    `probability` is the share of steps that move (the paper's 0.5), `smallest_scale` the smallest side of moved latents
    as a share of the whole (the paper's 0.25).
    """

    probability: float = 0.5
    smallest_scale: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.probability <= 1, "probability", "a number from 0 to 1", self.probability)
        require(0 < self.smallest_scale <= 1, "smallest_scale", "a number above 0, 1 at most,", self.smallest_scale)

    def draw(self, height: int, width: int) -> Move | None:
        """A move of latents `height` x `width`, or none."""
        chance, turn, scale = torch.rand(3).tolist()
        if chance >= self.probability:
            return None
        turns = int(turn * 4)
        sides = (height, width) if turns % 2 == 0 else (width, height)
        size = [low + int(scale * (side - low + 1)) for low, side in zip(self.lowest(*sides), sides, strict=True)]
        return Move(turns, (size[0], size[1]))

    def lowest(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size of moved latents."""
        return math.ceil(height * self.smallest_scale), math.ceil(width * self.smallest_scale)
