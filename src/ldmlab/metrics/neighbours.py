"""Precision, recall, density and coverage: fidelity and diversity apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmlab.metrics.checked import TILE, checked


@dataclass(frozen=True)
class PrecisionRecall:
    """Fidelity and diversity apart. Precision, recall and coverage are in [0, 1]; density is 1 for equal sets.

    Precision and density rise under blur: they mean little without recall and coverage beside them.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(
    real: Tensor, generated: Tensor, ks: Sequence[int] = (3, 5)
) -> dict[int, PrecisionRecall]:
    """Precision and recall (Kynkäänniemi et al. 2019, eq. 1 to 3), density and coverage (Naeem et al. 2020, eq. 4, 5).

    A ball around each image reaches to its k-th neighbour in the same set. Precision is the share of generated images
    in some real ball, recall the share of real images in some generated ball, density the mean number of real balls
    around a generated image over k, coverage the share of real balls with a generated image in them. All four depend
    on k and on both numbers of images; Kynkäänniemi et al. take k = 3, Naeem et al. k = 5. Returns them for each k.

    Features are (N, D) and (M, D). Raises `UserError` when a side has no more than k images.
    """
    least = max(ks) + 1
    real, generated = checked(real, at_least=least), checked(generated, at_least=least)
    real_radii, generated_radii = neighbour_radii(real, ks), neighbour_radii(generated, ks)
    balls_around = torch.zeros(len(ks), len(generated), dtype=torch.float64, device=real.device)
    recalled = torch.zeros(len(ks), len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for i in range(0, len(real), TILE):
        for j in range(0, len(generated), TILE):
            rows, columns = slice(i, i + TILE), slice(j, j + TILE)
            distances = torch.cdist(real[rows].double(), generated[columns].double())
            for index in range(len(ks)):
                in_real_ball = distances <= real_radii[index, rows, None]
                balls_around[index, columns] += in_real_ball.sum(0)
                covered[index, rows] |= in_real_ball.any(1)
                recalled[index, rows] |= (distances <= generated_radii[index, columns]).any(1)
    return {
        k: PrecisionRecall(
            precision=float((balls_around[index] > 0).double().mean()),
            recall=float(recalled[index].double().mean()),
            density=float(balls_around[index].mean() / k),
            coverage=float(covered[index].double().mean()),
        )
        for index, k in enumerate(ks)
    }


def neighbour_radii(features: Tensor, ks: Sequence[int]) -> Tensor:
    """Distance of each row of (N, D) to its k-th nearest other row, for each k: (len(ks), N)."""
    most = max(ks) + 1  # one more than k: each row is its own nearest neighbour
    radii = []
    for rows in features.split(TILE):
        nearest = torch.empty(len(rows), 0, dtype=torch.float64, device=features.device)
        for columns in features.split(TILE):
            candidates = torch.cat([nearest, torch.cdist(rows.double(), columns.double())], 1)
            nearest = candidates.topk(min(most, candidates.shape[1]), largest=False, sorted=True).values
        radii.append(nearest[:, list(ks)])
    return torch.cat(radii).T
