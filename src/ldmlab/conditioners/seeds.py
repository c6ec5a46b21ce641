"""One seed for each image of a batch, so that what is drawn for it does not depend on the batch it is in."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def drawn_seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    """The `seeds` that are given, or `count` new ones from torch's global generator."""
    return torch.randint(2**62, (count,)).tolist() if seeds is None else list(seeds)
