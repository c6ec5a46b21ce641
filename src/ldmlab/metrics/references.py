"""The real images that others are compared with, as an extractor sees them; published statistics among them."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
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
from ldmlab.pretrained.digests import file_digest

STATISTICS = ("mu", "sigma")
SPATIAL_STATISTICS = ("mu_s", "sigma_s")
IMAGES = "arr_0"
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Reference:
    """Features of real images, or where only their statistics were published, these alone.

    `title` says which images they are, `samples` how many, None where nobody said; equal references have equal `hash`.
    Kernel distance and precision need `features`; the Fréchet distances can do without. `made_of` is the data and split
    that a file says its statistics are of.
    """

    title: str
    samples: int | None
    hash: str
    features: Features | None
    statistics: Gaussian | None = None
    spatial_statistics: Gaussian | None = None
    made_of: str | None = None

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

    def write_npz(self, path: Path, manifest: dict[str, Any]) -> Path:
        """Writes the statistics under the names of ADM's files, and how they were made; returns the file's path."""
        path = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
        arrays: dict[str, Any] = {"manifest": np.array(json.dumps(manifest))}
        for (mean, covariance), gaussian in ((STATISTICS, self.pooled), (SPATIAL_STATISTICS, self.spatial)):
            if gaussian is not None:
                arrays |= {mean: gaussian.mean.cpu().numpy(), covariance: gaussian.covariance.cpu().numpy()}
        try:
            np.savez(path, **arrays)
        except OSError as error:
            raise UserError(f"output: cannot write {path} ({error.strerror}): choose another place") from error
        return path


def read_npz(path: Path, extractor: FeatureExtractor, image_size: int) -> Reference:
    """Published statistics, or images, in an .npz file of ADM's kind (Dhariwal and Nichol 2021).

    `mu`, `sigma` and, for sFID, `mu_s`, `sigma_s` are Inception's; `arr_0`, uint8 (N, H, W, 3), are images, for
    the metrics that need more than statistics. Where there are images alone, everything is taken from them. A file
    that `Reference.write_npz` wrote says how it was made, and is taken for features made so only.

    Raises:
        UserError: there is no such file, it holds neither, statistics of other features than the extractor's, or
            images of another size than `image_size`.
    """
    if not NAME.fullmatch(path.stem) or path.stem in ("train", "val", "speed"):
        raise UserError(
            f"metrics.reference: '{path.stem}' cannot be part of a metric's name; give the file one of letters, "
            "digits, '_', '-' and '.', other than train and val"
        )
    digest = file_hash(path)
    arrays = read_arrays(path, "metrics.reference")
    gaussian, spatial = (_gaussian(arrays, names, path) for names in (STATISTICS, SPATIAL_STATISTICS))
    images = arrays.get(IMAGES)
    manifest = json.loads(str(arrays["manifest"])) if "manifest" in arrays else {}
    if gaussian is None and images is None:
        raise UserError(f"metrics.reference: {path} holds neither statistics (mu, sigma) nor images (arr_0)")
    if gaussian is not None:
        _check_features(gaussian, manifest, extractor, path)
    features = None
    if images is not None:
        pixels = to_channels_first(images, path)
        if pixels.shape[2:] != (image_size, image_size):
            raise UserError(
                f"metrics.reference: the images of {path} are of {pixels.shape[3]} x {pixels.shape[2]} pixels, "
                f"the data of {image_size} x {image_size}"
            )
        features = extractor(pixels).to("cpu")
    count = manifest.get("reference_samples") if gaussian is not None else len(features or ())
    return Reference(path.stem, count, digest, features, gaussian, spatial, manifest.get("reference"))


def _check_features(gaussian: Gaussian, manifest: dict[str, Any], extractor: FeatureExtractor, path: Path) -> None:
    if len(gaussian.mean) != extractor.dimensions:
        raise UserError(
            f"metrics.reference: {path} holds statistics of {len(gaussian.mean)} features, {extractor.name} has "
            f"{extractor.dimensions}; published ones are of Inception: metrics/features=inception"
        )
    for key, value in extractor.manifest().items():
        if manifest and manifest.get(key) != value:
            raise UserError(
                f"metrics.reference: {path} was made with {key} {manifest.get(key)}, this run has {value}; "
                "make it anew with `ldmlab reference`"
            )


def read_arrays(path: Path, option: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; a UserError that names `option` where it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{option}: {path} is no readable .npz file ({reason})") from error


def to_channels_first(images: np.ndarray, path: Path) -> Tensor:
    """uint8 images (N, H, W, 3) of a file as a tensor (N, 3, H, W)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"{path}: images are uint8 (N, H, W, 3), not {images.dtype} {tuple(images.shape)}")
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def file_hash(path: Path) -> str:
    """The start of a file's SHA-256; raises `UserError` where there is none."""
    try:
        return file_digest(path)[:32]
    except OSError as error:
        raise UserError(f"metrics.reference: cannot read {path} ({error.strerror})") from error


def _gaussian(arrays: dict[str, np.ndarray], names: tuple[str, str], path: Path) -> Gaussian | None:
    if not set(names) <= set(arrays):
        return None
    mean, covariance = (torch.from_numpy(np.asarray(arrays[name], dtype=np.float64)) for name in names)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not covariance.isfinite().all():
        raise UserError(f"metrics.reference: {names[0]} and {names[1]} of {path} are no mean and covariance")
    return Gaussian(mean, covariance)
