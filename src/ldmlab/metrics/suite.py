"""Everything that is measured between one set of images and the reference, under the names that a run logs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ldmlab.metrics.extractors import FeatureExtractor, Features
from ldmlab.metrics.frechet import (
    Gaussian,
    frechet_distance_infinity,
    frechet_distance_of_gaussians,
    images_for_infinity,
)
from ldmlab.metrics.inception_score import SPLITS, inception_score
from ldmlab.metrics.kernel import kernel_distance
from ldmlab.metrics.names import DISTANCES
from ldmlab.metrics.neighbours import precision_recall_density_coverage
from ldmlab.metrics.references import Reference

NEIGHBOURS = (3, 5)
"""The k of precision and recall (Kynkäänniemi et al. 2019) and that of density and coverage (Naeem et al. 2020)."""


@dataclass(frozen=True)
class Measured:
    """A value, its standard error where it has one, and what its manifest says beside that of the whole set."""

    value: float
    standard_error: float | None = None
    how: dict[str, Any] = field(default_factory=dict)


def compare_with(
    reference: Reference, samples: Features, extractor: FeatureExtractor, wanted: Collection[str] = DISTANCES
) -> dict[str, Measured]:
    """The distances `wanted` of `samples` to `reference`, and scores, named as `extractor` names its metrics.

    Left out is what cannot be had: the kernel distance and the four of `prdc` where the reference is statistics alone,
    `fdinf` below `images_for_infinity` images, `sfd` and `is` on features without places or classes, `is` below 20.
    """
    found: dict[str, Measured] = {}
    real = reference.features
    if "kid" in wanted and real is not None:
        kernel = kernel_distance(real.pooled, samples.pooled)
        found["kid"] = Measured(kernel.value, kernel.standard_error, {"reference_samples": len(real)})
    if "fd" in wanted and reference.pooled is not None:
        found["fd"] = Measured(frechet_distance_of_gaussians(reference.pooled, Gaussian.fitted(samples.pooled)))
    places = None if samples.spatial is None else samples.spatial.shape[1]
    if "sfd" in wanted and reference.spatial is not None and len(reference.spatial.mean) == places:
        assert samples.spatial is not None
        found["sfd"] = Measured(frechet_distance_of_gaussians(reference.spatial, Gaussian.fitted(samples.spatial)))
    enough = images_for_infinity(extractor.dimensions)
    if "fdinf" in wanted and real is not None and min(len(real), len(samples)) >= enough:
        limit = frechet_distance_infinity(real.pooled, samples.pooled)
        found["fdinf"] = Measured(limit.value, limit.standard_error, {"fitted_to": limit.sizes})
    if "is" in wanted and len(samples) >= 2 * SPLITS:
        logits = extractor.logits(samples.pooled)
        if logits is not None:
            score = inception_score(logits)
            found["is"] = Measured(score.value, None, {"splits": SPLITS, "deviation": score.deviation})
    if "prdc" in wanted and real is not None:
        for k, four in precision_recall_density_coverage(real.pooled, samples.pooled, NEIGHBOURS).items():
            how = {"reference_samples": len(real)}
            found |= {f"{name}_k{k}": Measured(value, None, how) for name, value in vars(four).items()}
    return {extractor.metric_name(name): measured for name, measured in found.items()}
