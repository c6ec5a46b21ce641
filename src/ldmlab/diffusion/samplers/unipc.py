"""UniPC: a corrector that costs nothing after a predictor of any order (Zhao et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ldmlab.diffusion.samplers.base import Denoise, Past, Point, RandnLike, Sampler, initial_sample
from ldmlab.diffusion.samplers.dpm_solver import usable_order
from ldmlab.diffusion.schedules import Schedule
from ldmlab.settings import require


@dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC of `order` 1 to 3 in the prediction of x0, with B(h) = e^h - 1 (Zhao et al. 2023, algorithms 5 to 8).

    Each evaluation serves twice: the corrector puts the point just reached right with it, and the predictor goes on
    from there. One evaluation a step; order 2 with strong guidance, 3 without (their section 4.1).
    """

    steps: int = 20
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.order in (1, 2, 3), "order", "1, 2 or 3", self.order)

    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...), in its precision, at least float32."""
        points = self.points(schedule)
        x = predicted = initial_sample(noise, points[0])
        past: Past = []
        order = 0
        for step, (here, there) in enumerate(pairwise(points)):
            prediction = denoise(predicted, here.batch_time(predicted))
            if past and math.isfinite(past[-1][0].logsnr):
                x = _advance(x, past, here, order, prediction.x0)
            else:
                x = predicted
            past = [*past[-2:], (here, prediction)]
            # a path that ends at the data ends with a step of first order: lower the order in time, as the authors do
            wanted = min(self.order, self.steps - step) if points[-1].sigma == 0 else self.order
            order = usable_order(wanted, past, there)
            predicted = _advance(x, past, there, order)
        return predicted


def _advance(x: Tensor, past: Past, there: Point, order: int, x0_there: Tensor | None = None) -> Tensor:
    """x at `there` from x at the last of `past`: predicted, or corrected where x0 at `there` is known.

    Zhao et al. 2023, eq. 3 and 9 with the coefficients of theorem 3.1: weights of the differences of x0 solve R a = b.
    """
    (here, prediction), earlier = past[-1], past[-order:-1][::-1]
    h = there.logsnr - here.logsnr
    ratios = [(point.logsnr - here.logsnr) / h for point, _ in earlier]
    known = [(past_prediction.x0 - prediction.x0) / r for (_, past_prediction), r in zip(earlier, ratios, strict=True)]
    if x0_there is not None:
        ratios.append(1.0)
        known.append(x0_there - prediction.x0)
    scale = there.alpha * -math.expm1(-h)
    x = there.sigma / here.sigma * x + scale * prediction.x0
    for weight, difference in zip(_weights(ratios, h), known, strict=True):
        x = x + scale * weight * difference
    return x


def _weights(ratios: list[float], h: float) -> list[float]:
    """The weights a of theorem 3.1 for differences at `ratios` of the step h; one half for a single one, as theirs."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    phi, factorial = math.expm1(-h) / -h - 1, 1.0
    rows, b = [], []
    for power in range(len(ratios)):
        rows.append([ratio**power for ratio in ratios])
        b.append(phi * factorial / math.expm1(-h))
        factorial *= power + 2
        phi = phi / -h - 1 / factorial
    matrix, right = torch.tensor(rows, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    return torch.linalg.solve(matrix, right).tolist()
