"""What all distances ask of features, and how much of them is in memory in float64 at a time."""

from __future__ import annotations

from torch import Tensor

from ldmlab.errors import UserError

TILE = 1024
"""Rows of features that are turned to float64 at a time, and rows and columns of a pairwise matrix: 8 MB of it.

All sums run in float64, as float32 loses covariances of thousands of images; whole sets of features stay as they are.
"""


def checked(features: Tensor, at_least: int) -> Tensor:
    """Features (N, D), as they are; raises `UserError` for too few or for NaN."""
    if features.ndim != 2:
        raise ValueError(f"expected features (N, D), got {tuple(features.shape)}")
    if len(features) < at_least:
        raise UserError(f"this distance needs {at_least} or more images on each side, got {len(features)}")
    if not features.isfinite().all():
        raise UserError("features hold NaN or infinity, so no distance is defined: check the images for NaN")
    return features
