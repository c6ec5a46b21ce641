"""DPM-Solver++: exponential integrators in log(alpha / sigma) that extrapolate x0 (Lu et al. 2022b).

With lambda = log(alpha / sigma) and h its step, the exact solution is
x(there) = sigma' / sigma x + alpha' ∫ e^(l - lambda') x0(l) dl over the step (their eq. 8). The solvers differ in how
many past predictions of x0 they put a polynomial through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldmlab.diffusion.samplers.base import OneEvaluation, Past, Point, RandnLike
from ldmlab.settings import require

FEW_STEPS = 15
"""Below so many steps the last but one is of second order at most: the third is unstable near the data."""


def usable_order(wanted: int, past: Past, there: Point) -> int:
    """The order that a step can have: the last one, to sigma = 0, is of infinite length and so has the first.

    Neither can a past point at the start of the path count from which the step was infinitely long.
    """
    if there.sigma == 0:
        return 1
    return max(min(wanted, sum(math.isfinite(point.logsnr) for point, _ in past)), 1)


def differences(past: Past, h: float, order: int) -> list[Tensor]:
    """The first `order` - 1 derivatives of x0 by lambda at the newest point, times powers of h, from past predictions.

    They are those of the polynomial through the past predictions, by Newton's divided differences.
    """
    if order == 1:
        return []
    points, x0 = [point for point, _ in past], [prediction.x0 for _, prediction in past]
    r0 = (points[-1].logsnr - points[-2].logsnr) / h
    first = (x0[-1] - x0[-2]) / r0
    if order == 2:
        return [first]
    r1 = (points[-2].logsnr - points[-3].logsnr) / h
    before = (x0[-2] - x0[-3]) / r1
    return [first + r0 / (r0 + r1) * (first - before), 2 * (first - before) / (r0 + r1)]


@dataclass(frozen=True)
class _Multistep(OneEvaluation):
    order: ClassVar[int]
    curvature = 1.0

    def step(self, x: Tensor, past: Past, there: Point, left: int, randn_like: RandnLike) -> Tensor:
        """x at the next point `there`."""
        here, prediction = past[-1]
        wanted = min(self.order, left) if self.steps < FEW_STEPS else self.order
        order = usable_order(wanted, past, there)
        h = there.logsnr - here.logsnr
        gain = -math.expm1(-h)
        x = there.sigma / here.sigma * x + there.alpha * gain * prediction.x0
        derivatives = differences(past, h, order)
        if order == 2:
            x = x + there.alpha * 0.5 * gain * derivatives[0]
        if order == 3:
            x = x + there.alpha * (1 - gain / h) * derivatives[0]
            x = x + there.alpha * (0.5 - (h - gain) / h**2) * self.curvature * derivatives[1]
        return x


@dataclass(frozen=True)
class DPMpp1(_Multistep):
    """DPM-Solver++ of first order (Lu et al. 2022b, eq. 9 with k = 1), which is DDIM."""

    order = 1
    steps: int = 20


@dataclass(frozen=True)
class DPMpp2M(_Multistep):
    """DPM-Solver++(2M), second order from two predictions of x0 (Lu et al. 2022b, algorithm 2)."""

    order = 2
    steps: int = 20


@dataclass(frozen=True)
class DPMpp3M(_Multistep):
    """DPM-Solver++(3M), third order from three predictions of x0 (Lu et al. 2022b, eq. 8 for n = 2).

    `curvature` is the share of the second derivative that is taken. The authors' code and those after it take 0.5:
    their divided difference is half of the derivative, which makes the method of second order.
    """

    order = 3
    steps: int = 20
    curvature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.curvature <= 1, "curvature", "a number from 0 to 1", self.curvature)


@dataclass(frozen=True)
class DPMpp2MSDE(OneEvaluation):
    """SDE-DPM-Solver++(2M): the same on the reverse SDE, with fresh noise at every step (Lu et al. 2022b, eq. 17)."""

    steps: int = 20

    def step(self, x: Tensor, past: Past, there: Point, left: int, randn_like: RandnLike) -> Tensor:
        """x at the next point `there`."""
        here, prediction = past[-1]
        order = usable_order(2, past, there)
        h = there.logsnr - here.logsnr
        gain = -math.expm1(-2 * h)
        x = there.sigma / here.sigma * math.exp(-h) * x + there.alpha * gain * prediction.x0
        if order == 2:
            x = x + there.alpha * 0.5 * gain * differences(past, h, 2)[0]
        return x + there.sigma * math.sqrt(gain) * randn_like(x) if there.sigma > 0 else x
