"""Which part of an image in-painting is to fill: random masks for training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

Draw = Callable[[np.random.Generator, int, int], np.ndarray]
"""(dice, height, width) -> bool (height, width), True where there is something to paint."""


def box(dice: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A rectangle of a quarter to three quarters of each side."""
    mask = np.zeros((height, width), dtype=bool)
    spans = []
    for side in (height, width):
        extent = max(1, round(side * dice.uniform(0.25, 0.75)))
        start = dice.integers(side - extent + 1)
        spans.append(slice(start, start + extent))
    mask[tuple(spans)] = True
    return mask


def strokes(dice: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One to four strokes of a brush that turns as it goes (after Yu et al. 2019, "free-form masks")."""
    picture = Image.new("1", (width, height))
    draw = ImageDraw.Draw(picture)
    reach = min(height, width)
    for _ in range(dice.integers(1, 5)):
        thick = max(2, round(reach * dice.uniform(0.06, 0.18)))
        x, y = dice.uniform(0, width), dice.uniform(0, height)
        angle = dice.uniform(0, 2 * math.pi)
        for _ in range(dice.integers(3, 8)):
            angle += dice.uniform(-1, 1)
            length = reach * dice.uniform(0.1, 0.3)
            to_x = min(max(x + length * math.cos(angle), 0), width)
            to_y = min(max(y + length * math.sin(angle), 0), height)
            draw.line((x, y, to_x, to_y), fill=1, width=thick)
            radius = thick / 2
            draw.ellipse((to_x - radius, to_y - radius, to_x + radius, to_y + radius), fill=1)
            x, y = to_x, to_y
    return np.array(picture)


def half(dice: np.random.Generator, height: int, width: int) -> np.ndarray:
    """The left, right, upper or lower half."""
    mask = np.zeros((height, width), dtype=bool)
    side = dice.integers(4)
    rows = (slice(height // 2), slice(height // 2, None))
    columns = (slice(width // 2), slice(width // 2, None))
    if side < 2:
        mask[rows[side]] = True
    else:
        mask[:, columns[side - 2]] = True
    return mask


MASKS: Mapping[str, Draw] = {"box": box, "strokes": strokes, "half": half}


def random_mask(kinds: tuple[str, ...], seed: int, height: int, width: int) -> Tensor:
    """A mask bool (1, height, width) of one of `kinds`, as `seed` says; True where there is something to paint."""
    dice = np.random.default_rng(seed)
    kind = kinds[dice.integers(len(kinds))]
    return torch.from_numpy(MASKS[kind](dice, height, width))[None]
