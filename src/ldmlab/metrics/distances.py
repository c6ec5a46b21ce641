"""Distances between two sets of images, as pure functions of their features (N, D)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldmlab.errors import UserError

TILE = 2048
"""Rows and columns of the pairwise matrices that are in memory at a time: 32 MB a matrix in float64."""


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance and its standard error, the deviation that repeating it on fresh images would show."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class PrecisionRecall:
    """Fidelity and diversity apart. Precision, recall and coverage are in [0, 1]; density is 1 for equal sets.

    Precision and density rise under blur: they mean little without recall and coverage beside them.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def gaussian_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64."""
    features = _checked(features, at_least=2)
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1)


def frechet_distance_of_gaussians(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    |mean_a - mean_b|² + tr(A + B - 2 (A B)^½). With A = L Lᵀ the last trace is that of (Lᵀ B L)^½, a symmetric matrix.
    Hence singular covariances (fewer images than features) need neither an offset on the diagonal nor a complex square
    root. Means are (D,), covariances (D, D); everything runs in float64.
    """
    mean_a, covariance_a, mean_b, covariance_b = (x.double() for x in (mean_a, covariance_a, mean_b, covariance_b))
    factor = _covariance_factor(covariance_a)
    cross = torch.linalg.eigvalsh(factor.T @ covariance_b @ factor).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of Gaussians fitted to features (N, D) and (M, D): FID's definition, on any features.

    Biased upwards, the more the fewer images, whatever their quality: compare at one and the same N only. Raises
    `UserError` for fewer than two images on a side or for features that are not finite.
    """
    return frechet_distance_of_gaussians(*gaussian_statistics(a), *gaussian_statistics(b))


def _covariance_factor(covariance: Tensor) -> Tensor:
    """L (D, rank) with L Lᵀ = covariance; directions of no variance but rounding error are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def kernel_distance(a: Tensor, b: Tensor) -> KernelDistance:
    """Squared maximum mean discrepancy of features (N, D) and (M, D) with the kernel (x·y / D + 1)³.

    This is KID (Bińkowski et al. 2018, section 4, with the unbiased estimator of Gretton et al. 2012, eq. 3) over all
    samples at once. The usual mean over random subsets of 1000 converges to this very value as subsets are added,
    whatever their size; with 100 subsets it has the noise of drawing on top. Unbiased: around 0, also below it, for
    two sets from the same distribution.

    The standard error is that of the whole U-statistic, to second order. The first order alone (Serfling 1980,
    theorem 5.5.1 A) is zero for equal distributions, exactly where the error decides whether a difference is one; the
    second-order terms are those of the Hoeffding decomposition (Serfling 1980, lemma 5.2.1 A; estimated as in
    Sutherland 2019, arXiv:1906.02104). It covers the drawing of both sets. Around zero it is up to a quarter too
    large, because a first-order variance below zero is taken for zero; far from zero it is exact to a few per cent.

    Time is O((N + M)² D), memory O(N + M) beside the features. Raises as `frechet_distance` does, with four images
    as the least.
    """
    n, m = len(a), len(b)
    a, b = _checked(a, at_least=4), _checked(b, at_least=4)
    within_a, within_b, across = _sums_within(a), _sums_within(b), _sums_across(a, b)
    mean_aa, mean_bb = within_a.rows.mean() / (n - 1), within_b.rows.mean() / (m - 1)
    mean_ab = across.rows.mean() / m

    # second order: variance of what is left of k(x, y) without the parts that depend on x alone and on y alone;
    # the variance of row means overestimates the parts by residual / row length, hence the denominators
    rows_aa, rows_bb = (within_a.rows / (n - 1)).var(), (within_b.rows / (m - 1)).var()
    rows_ab, columns_ab = (across.rows / m).var(), (across.columns / n).var()
    residual_aa = (within_a.squares / (n * (n - 1)) - mean_aa**2 - 2 * rows_aa) / (1 - 2 / (n - 1))
    residual_bb = (within_b.squares / (m * (m - 1)) - mean_bb**2 - 2 * rows_bb) / (1 - 2 / (m - 1))
    residual_ab = (across.squares / (n * m) - mean_ab**2 - rows_ab - columns_ab) / (1 - 1 / n - 1 / m)
    residual_aa, residual_bb, residual_ab = (r.clamp(min=0) for r in (residual_aa, residual_bb, residual_ab))

    # first order: how far each image moves the distance, E k(x, x') - E k(x, y) as a function of x
    first_a = (within_a.rows / (n - 1) - across.rows / m).var() - residual_aa / (n - 1) - residual_ab / m
    first_b = (within_b.rows / (m - 1) - across.columns / n).var() - residual_bb / (m - 1) - residual_ab / n
    # clamped as a sum: around zero the estimates scatter to both sides, and the bias of clamping each would add up
    first = (4 * first_a / n + 4 * first_b / m).clamp(min=0)
    second = 2 * residual_aa / (n * (n - 1)) + 2 * residual_bb / (m * (m - 1)) + 4 * residual_ab / (n * m)
    variance = first + second
    return KernelDistance(float(mean_aa + mean_bb - 2 * mean_ab), float(variance.sqrt()))


@dataclass
class _KernelSums:
    """Sums of a kernel matrix: of every row, of every column, and of all squares."""

    rows: Tensor
    columns: Tensor
    squares: Tensor


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _sums_across(a: Tensor, b: Tensor) -> _KernelSums:
    sums = _KernelSums(a.new_zeros(len(a)), b.new_zeros(len(b)), a.new_zeros(()))
    for i in range(0, len(a), TILE):
        for j in range(0, len(b), TILE):
            tile = _kernel(a[i : i + TILE], b[j : j + TILE])
            sums.rows[i : i + TILE] += tile.sum(1)
            sums.columns[j : j + TILE] += tile.sum(0)
            sums.squares += tile.square().sum()
    return sums


def _sums_within(a: Tensor) -> _KernelSums:
    """Sums over pairs of different images; the matrix is symmetric, so half of its tiles are computed."""
    rows, squares = a.new_zeros(len(a)), a.new_zeros(())
    for i in range(0, len(a), TILE):
        for j in range(i, len(a), TILE):
            tile = _kernel(a[i : i + TILE], a[j : j + TILE])
            if i == j:
                tile.fill_diagonal_(0)
            else:
                rows[j : j + TILE] += tile.sum(0)
            rows[i : i + TILE] += tile.sum(1)
            squares += tile.square().sum() * (1 if i == j else 2)
    return _KernelSums(rows, rows, squares)


def precision_recall_density_coverage(real: Tensor, generated: Tensor, k: int = 5) -> PrecisionRecall:
    """Precision and recall (Kynkäänniemi et al. 2019, eq. 1 to 3), density and coverage (Naeem et al. 2020, eq. 4, 5).

    A ball around each image reaches to its k-th neighbour in the same set. Precision is the share of generated images
    in some real ball, recall the share of real images in some generated ball, density the mean number of real balls
    around a generated image over k, coverage the share of real balls with a generated image in them. All four depend
    on k and on both numbers of images; Kynkäänniemi et al. take k = 3, Naeem et al. k = 5.

    Features are (N, D) and (M, D). Raises `UserError` when a side has no more than k images.
    """
    real, generated = _checked(real, at_least=k + 1), _checked(generated, at_least=k + 1)
    real_radii, generated_radii = _neighbour_radii(real, k), _neighbour_radii(generated, k)
    balls_around = real.new_zeros(len(generated))
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for i in range(0, len(real), TILE):
        for j in range(0, len(generated), TILE):
            distances = torch.cdist(real[i : i + TILE], generated[j : j + TILE])
            in_real_ball = distances <= real_radii[i : i + TILE, None]
            balls_around[j : j + TILE] += in_real_ball.sum(0)
            covered[i : i + TILE] |= in_real_ball.any(1)
            recalled[i : i + TILE] |= (distances <= generated_radii[j : j + TILE]).any(1)
    return PrecisionRecall(
        precision=float((balls_around > 0).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(balls_around.mean() / k),
        coverage=float(covered.double().mean()),
    )


def _neighbour_radii(features: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row."""
    radii = []
    for rows in features.split(TILE):
        nearest = features.new_empty(len(rows), 0)
        for columns in features.split(TILE):
            candidates = torch.cat([nearest, torch.cdist(rows, columns)], 1)
            # one more than k: each row is its own nearest neighbour
            nearest = candidates.topk(min(k + 1, candidates.shape[1]), largest=False, sorted=True).values
        radii.append(nearest[:, k])
    return torch.cat(radii)


def _checked(features: Tensor, at_least: int) -> Tensor:
    """Features (N, D) in float64; float32 loses covariances of thousands of images."""
    if features.ndim != 2:
        raise ValueError(f"expected features (N, D), got {tuple(features.shape)}")
    if len(features) < at_least:
        raise UserError(f"this distance needs {at_least} or more images on each side, got {len(features)}")
    if not features.isfinite().all():
        raise UserError("features hold NaN or infinity, so no distance is defined: check the images for NaN")
    return features.double()
