"""What the objects of the embedded data set are called, and what the words mean."""

from __future__ import annotations

import math

from ldmlab.data.signed_distance import SHAPES

SHAPE_NAMES = tuple(SHAPES)
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.08, 0.10),
    "orange": (1.00, 0.52, 0.02),
    "yellow": (1.00, 0.93, 0.12),
    "green": (0.06, 0.66, 0.16),
    "cyan": (0.10, 0.88, 0.92),
    "blue": (0.12, 0.20, 0.92),
    "pink": (1.00, 0.42, 0.80),
    "white": (1.00, 1.00, 1.00),
}
SIZES = {"small": 0.13, "medium": 0.18, "large": 0.24}  # radius, as a share of the picture's side
CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPE_NAMES for colour in COLOURS)
RELATIONS = ("left of", "right of", "above", "below")

MAX_TURN = math.radians(12)  # a turned square stays a square and a turned cross stays upright
