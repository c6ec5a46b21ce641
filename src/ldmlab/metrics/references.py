"""The real images that others are compared with, as an extractor sees them; published statistics among them."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldmlab.errors import UserError
from ldmlab.metrics.extractors import FeatureExtractor, Features
from ldmlab.metrics.frechet import Gaussian

STATISTICS = ("mu", "sigma")
SPATIAL_STATISTICS = ("mu_s", "sigma_s")
IMAGES = "arr_0"


@dataclass(frozen=True)
class Reference:
    """Features of real images, or where only their statistics were published, these alone.

    `title` says which images they are, `samples` how many, None where nobody said; equal references have equal `hash`.
    Kernel distance and precision need `features`; the Fréchet distances can do without.
    """

    title: str
    samples: int | None
    hash: str
    features: Features | None
    statistics: Gaussian | None = None
    spatial_statistics: Gaussian | None = None

    @cached_property
    def pooled(self) -> Gaussian | None:
        """The Gaussian of the pooled features: the published one, where there is one."""
        if self.statistics or self.features is None:
            return self.statistics
        return Gaussian.fitted(self.features.pooled)

    @cached_property
    def spatial(self) -> Gaussian | None:
        """The Gaussian of the spatial features, None where there are none."""
        if self.spatial_statistics or self.features is None or self.features.spatial is None:
            return self.spatial_statistics
        return Gaussian.fitted(self.features.spatial)

    def write_npz(self, path: Path, manifest: str) -> None:
        """Writes the statistics under the names of ADM's files: mu, sigma, mu_s, sigma_s; and how they were made."""
        named = {STATISTICS: self.pooled, SPATIAL_STATISTICS: self.spatial}
        arrays: dict[str, Any] = {"manifest": np.array(manifest)}
        for (mean, covariance), gaussian in named.items():
            if gaussian is not None:
                arrays |= {mean: gaussian.mean.cpu().numpy(), covariance: gaussian.covariance.cpu().numpy()}
        try:
            np.savez(path, **arrays)
        except OSError as error:
            raise UserError(f"output: cannot write {path} ({error.strerror}): choose another place") from error


def read_npz(path: Path, extractor: FeatureExtractor, samples: int | None = None) -> Reference:
    """Published statistics, or images, in an .npz file of ADM's kind (Dhariwal and Nichol 2021).

    `mu`, `sigma` and, for sFID, `mu_s`, `sigma_s` are Inception's; `arr_0`, uint8 (N, H, W, 3), are images, for
    the metrics that need more than statistics. Where there are images alone, everything is taken from them. `samples`
    is the number of images that the statistics were made of, which such a file does not tell.

    Raises:
        UserError: there is no such file, it holds neither, or statistics of other features than the extractor's.
    """
    digest = file_hash(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            gaussian = _gaussian(file, STATISTICS)
            spatial = _gaussian(file, SPATIAL_STATISTICS)
            images = file[IMAGES] if IMAGES in file.files else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"metrics.reference: {path} is no readable .npz file ({str(error).splitlines()[0]})") from error
    if gaussian is None and images is None:
        raise UserError(f"metrics.reference: {path} holds neither statistics (mu, sigma) nor images (arr_0)")
    if gaussian is not None and len(gaussian.mean) != extractor.dimensions:
        raise UserError(
            f"metrics.reference: {path} holds statistics of {len(gaussian.mean)} features, {extractor.name} has "
            f"{extractor.dimensions}; published ones are of Inception: metrics/features=inception"
        )
    features = None if images is None else extractor(to_channels_first(images, path))
    count = samples if gaussian is not None else len(features or ())
    return Reference(path.stem, count, digest, None if features is None else features.to("cpu"), gaussian, spatial)


def to_channels_first(images: np.ndarray, path: Path) -> Tensor:
    """uint8 images (N, H, W, 3) of a file as a tensor (N, 3, H, W)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"{path}: images are uint8 (N, H, W, 3), not {images.dtype} {tuple(images.shape)}")
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def file_hash(path: Path) -> str:
    """The start of a file's SHA-256; raises `UserError` where there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise UserError(f"metrics.reference: cannot read {path} ({error.strerror})") from error


def _gaussian(file: Any, names: tuple[str, str]) -> Gaussian | None:
    if not set(names) <= set(file.files):
        return None
    mean, covariance = (torch.from_numpy(np.asarray(file[name], dtype=np.float64)) for name in names)
    if covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"{names[1]} has shape {tuple(covariance.shape)} for {len(mean)} features")
    return Gaussian(mean, covariance)
