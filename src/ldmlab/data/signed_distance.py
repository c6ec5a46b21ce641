"""Exact signed distances of eight plane shapes, and their convex hulls.

A signed distance is negative inside the shape, positive outside, and its gradient has length one, so that
`clamp(0.5 - distance / pixel_width)` is the share of a pixel that a straight edge covers: one formula draws every
shape, anti-aliased, at every resolution. The folding constructions follow Quilez, "2D distance functions"
(iquilezles.org/articles/distfunctions2d).

Coordinates are the shape's own: x to the right, y up, the shape round the origin with a size near 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CIRCLE_RADIUS = 0.90
SQUARE_HALF_SIDE = 0.76
TRIANGLE_CIRCUMRADIUS = 1.08
STAR_TIP_RADIUS, STAR_VALLEY_RADIUS = 1.08, 0.46
RING_RADIUS, RING_HALF_WIDTH = 0.72, 0.22
CROSS_HALF_LENGTH, CROSS_HALF_WIDTH = 0.98, 0.30
DIAMOND_HALF_WIDTH, DIAMOND_HALF_HEIGHT = 0.66, 1.08
# Half a unit square on its corner with a disc on each upper side: scaled, then lowered to sit round the origin.
HEART_SCALE, HEART_CENTRE = 1.6, 0.56
HEART_LOBE_X, HEART_LOBE_Y, HEART_LOBE_RADIUS = 0.25, 0.75, math.sqrt(2) / 4

Point = tuple[float, float]
Disc = tuple[float, float, float]


def _length(x: Tensor, y: Tensor) -> Tensor:
    return torch.addcmul(x * x, y, y).sqrt_()


def _reflect(x: Tensor, y: Tensor, normal: Point) -> tuple[Tensor, Tensor]:
    """Points on the side of the mirror that `normal` points to, moved to their mirror image."""
    beyond = (x * normal[0]).add_(y, alpha=normal[1]).clamp_min_(0)
    return x.sub(beyond, alpha=2 * normal[0]), y.sub(beyond, alpha=2 * normal[1])


def _edge(x: Tensor, y: Tensor, start: Point, end: Point) -> Tensor:
    """Signed distance to the segment from `start` to `end`, negative on its right-hand side."""
    edge_x, edge_y = end[0] - start[0], end[1] - start[1]
    x, y = x - start[0], y - start[1]
    along = (x * edge_x).add_(y, alpha=edge_y).div_(edge_x**2 + edge_y**2).clamp_(0, 1)
    side = (y * edge_x).sub_(x, alpha=edge_y)
    return _length(x.sub_(along, alpha=edge_x), y.sub_(along, alpha=edge_y)).copysign_(side)


def circle(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the disc of radius 0.90."""
    return _length(x, y) - CIRCLE_RADIUS


def square(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the upright square."""
    x, y = x.abs() - SQUARE_HALF_SIDE, y.abs() - SQUARE_HALF_SIDE
    inside = torch.maximum(x, y).clamp_max_(0)
    return _length(x.clamp_min_(0), y.clamp_min_(0)).add_(inside)


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the equilateral triangle that stands on a side."""
    # The mirrors of its symmetry fold the plane onto one half of one side.
    x, y = _reflect(x.abs(), y, (0.5, -math.sqrt(3) / 2))
    middle = TRIANGLE_CIRCUMRADIUS / 2
    return _edge(x.abs(), y, (0.0, TRIANGLE_CIRCUMRADIUS), (middle * math.sqrt(3) / 2, middle / 2))


def star(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the five-pointed star with one tip up."""
    cosine, sine = math.cos(math.pi / 5), math.sin(math.pi / 5)
    x, y = _reflect(x.abs(), y, (cosine, -sine))
    x, y = _reflect(x, y, (-cosine, -sine))
    valley = (STAR_VALLEY_RADIUS * sine, STAR_VALLEY_RADIUS * cosine)
    return _edge(x.abs(), y, (0.0, STAR_TIP_RADIUS), valley)


def ring(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the ring, hollow in the middle."""
    return (_length(x, y) - RING_RADIUS).abs_().sub_(RING_HALF_WIDTH)


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the upright cross with four equal arms."""
    x, y = x.abs(), y.abs()
    x, y = torch.maximum(x, y), torch.minimum(x, y)
    beyond_end, beyond_side = x - CROSS_HALF_LENGTH, y - CROSS_HALF_WIDTH
    beyond = torch.maximum(beyond_end, beyond_side)
    outside = _length(beyond_end.clamp_min(0), beyond_side.clamp_min(0))
    # Near the centre the inner corner, where two arms meet, is closer than any side.
    inside = _length((CROSS_HALF_WIDTH - x).clamp_min_(0), beyond.clamp_max(0))
    return torch.where(beyond > 0, outside, inside.neg_())


def diamond(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the diamond on its long diagonal; narrow, so that no turned square looks like it."""
    return _edge(x.abs(), y.abs(), (0.0, DIAMOND_HALF_HEIGHT), (DIAMOND_HALF_WIDTH, 0.0))


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the heart with its tip down."""
    x, y = x.abs() / HEART_SCALE, y / HEART_SCALE + HEART_CENTRE
    lobe = _length(x - HEART_LOBE_X, y - HEART_LOBE_Y).sub_(HEART_LOBE_RADIUS)
    notch = _length(x, y - 1)
    diagonal = (x + y).clamp_min_(0).mul_(0.5)
    body = torch.minimum(notch, _length(x - diagonal, y - diagonal)).copysign_(x - y)
    return torch.where(x + y > 1, lobe, body).mul_(HEART_SCALE)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
    "diamond": diamond,
    "heart": heart,
}
"""Signed distance of each shape: coordinates x and y, of any one shape, to distances of that shape."""


def _corners(radius: float, count: int) -> list[Disc]:
    angles = [math.pi / 2 + 2 * math.pi * corner / count for corner in range(count)]
    return [(radius * math.cos(angle), radius * math.sin(angle), 0) for angle in angles]


def hull_discs() -> Tensor:
    """Discs whose convex hull is that of each shape, float64 (number of shapes, 8, 3): x, y and radius of a disc.

    A corner is a disc of radius zero. Bounding boxes of turned shapes follow from these exactly. Shapes with
    fewer than eight discs repeat their first.
    """
    side, arm, half = SQUARE_HALF_SIDE, CROSS_HALF_LENGTH, CROSS_HALF_WIDTH
    wide, high = DIAMOND_HALF_WIDTH, DIAMOND_HALF_HEIGHT
    lobe_x, lobe_y = HEART_SCALE * HEART_LOBE_X, HEART_SCALE * (HEART_LOBE_Y - HEART_CENTRE)
    lobe_radius = HEART_SCALE * HEART_LOBE_RADIUS
    both = (-1, 1)
    discs: dict[str, list[Disc]] = {
        "circle": [(0, 0, CIRCLE_RADIUS)],
        "square": [(a * side, b * side, 0) for a in both for b in both],
        "triangle": _corners(TRIANGLE_CIRCUMRADIUS, 3),
        "star": _corners(STAR_TIP_RADIUS, 5),
        "ring": [(0, 0, RING_RADIUS + RING_HALF_WIDTH)],
        "cross": [(a * x, b * y, 0) for x, y in ((arm, half), (half, arm)) for a in both for b in both],
        "diamond": [(wide, 0, 0), (-wide, 0, 0), (0, high, 0), (0, -high, 0)],
        "heart": [(lobe_x, lobe_y, lobe_radius), (-lobe_x, lobe_y, lobe_radius), (0, -HEART_SCALE * HEART_CENTRE, 0)],
    }
    padded = [discs[name] + discs[name][:1] * (8 - len(discs[name])) for name in SHAPES]
    return torch.tensor(padded, dtype=torch.float64)
