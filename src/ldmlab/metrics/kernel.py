"""The kernel distance (KID) between two sets of features, with its standard error."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ldmlab.metrics.checked import TILE, checked


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance and its standard error, the deviation that repeating it on fresh images would show."""

    value: float
    standard_error: float


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
    a, b = checked(a, at_least=4), checked(b, at_least=4)
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
    return (a.double() @ b.double().T / a.shape[1] + 1) ** 3


def _sums_across(a: Tensor, b: Tensor) -> _KernelSums:
    zeros = partial(torch.zeros, dtype=torch.float64, device=a.device)
    sums = _KernelSums(zeros(len(a)), zeros(len(b)), zeros(()))
    for i in range(0, len(a), TILE):
        for j in range(0, len(b), TILE):
            tile = _kernel(a[i : i + TILE], b[j : j + TILE])
            sums.rows[i : i + TILE] += tile.sum(1)
            sums.columns[j : j + TILE] += tile.sum(0)
            sums.squares += tile.square().sum()
    return sums


def _sums_within(a: Tensor) -> _KernelSums:
    """Sums over pairs of different images; the matrix is symmetric, so half of its tiles are computed."""
    zeros = partial(torch.zeros, dtype=torch.float64, device=a.device)
    rows, squares = zeros(len(a)), zeros(())
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
