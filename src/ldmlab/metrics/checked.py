"""What all distances ask of features, and how much of a pairwise matrix is in memory at a time."""

from __future__ import annotations

from torch import Tensor

from ldmlab.errors import UserError

TILE = 2048
"""Rows and columns of the pairwise matrices that are in memory at a time: 32 MB a matrix in float64."""


def checked(features: Tensor, at_least: int) -> Tensor:
    """Features (N, D) in float64; float32 loses covariances of thousands of images."""
    if features.ndim != 2:
        raise ValueError(f"expected features (N, D), got {tuple(features.shape)}")
    if len(features) < at_least:
        raise UserError(f"this distance needs {at_least} or more images on each side, got {len(features)}")
    if not features.isfinite().all():
        raise UserError("features hold NaN or infinity, so no distance is defined: check the images for NaN")
    return features.double()
