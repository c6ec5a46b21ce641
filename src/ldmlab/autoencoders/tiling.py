"""Large images in tiles: memory for one tile at a time, overlaps blended so that no seam shows.

An autoencoder sees only a neighbourhood of every pixel, up to attention at its lowest resolution and the statistics of
its norms. Tiles that overlap by more than the neighbourhood, and are blended there, give nearly what the whole would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Tiles of `size` latent positions a side, of which neighbours share `overlap` or more."""

    size: int
    overlap: int

    def __call__(self, function: Callable[[Tensor], Tensor], x: Tensor, before: int, after: int) -> Tensor:
        """`function` of x (B, C, H, W), tile by tile; what fits into one tile is not cut.

        A latent position is `before` values a side of x, and `after` of the result.
        """
        height, width = (side // before for side in x.shape[2:])
        total: Tensor | None = None
        weights: Tensor | None = None
        for top, bottom in spans(height, self.size, self.overlap):
            for left, right in spans(width, self.size, self.overlap):
                made = function(x[:, :, before * top : before * bottom, before * left : before * right])
                if total is None or weights is None:
                    total = made.new_zeros(*made.shape[:2], after * height, after * width)
                    weights = made.new_zeros(after * height, after * width)
                rows, columns = (ramps(side, after * self.overlap, made.device) for side in made.shape[2:])
                weight = torch.outer(rows, columns)
                place = slice(after * top, after * bottom), slice(after * left, after * right)
                total[:, :, *place] += made * weight
                weights[place] += weight
        assert total is not None
        assert weights is not None
        return total / weights


def spans(length: int, tile: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of tiles that cover `length`; evenly spread, neighbours share `overlap` or more."""
    if length <= tile:
        yield 0, length
        return
    count = -(-(length - overlap) // (tile - overlap))
    for place in range(count):
        start = place * (length - tile) // (count - 1)
        yield start, start + tile


def ramps(length: int, margin: int, device: torch.device) -> Tensor:
    """Weights (length,) of a tile's rows: 1 within, falling towards both ends over `margin`, but never to 0."""
    places = torch.arange(length, device=device)
    distance = torch.minimum(places, places.flip(0)) + 0.5
    return (distance / max(margin, 0.5)).clamp(max=1)
