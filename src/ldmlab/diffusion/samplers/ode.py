"""Solvers of the probability-flow ODE in general: Euler, Heun, and the pseudo linear multistep method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.samplers.base import (
    Denoise,
    OneEvaluation,
    Past,
    Point,
    RandnLike,
    Sampler,
    initial_sample,
    points_at,
)
from ldmlab.diffusion.schedules import Schedule
from ldmlab.settings import require


@dataclass(frozen=True)
class Variables:
    """Variables y = xt / scale and u, in which the ODE is dy/du = slope, without a derivative of the schedule.

    Any solver may be run in either pair; a method of first order takes the same steps in both.
    """

    scale: Callable[[Point], float]
    u: Callable[[Point], float]
    slope: Callable[[Prediction], Tensor]


STRAIGHT = Variables(
    scale=lambda point: point.alpha + point.sigma,
    u=lambda point: point.sigma / (point.alpha + point.sigma),
    slope=lambda prediction: prediction.noise - prediction.x0,
)
"""Every path as the rectified flow: y = (1 - u) x0 + u noise (Lipman et al. 2022, eq. 22, 23), finite at both ends."""

NOISE_LEVEL = Variables(
    scale=lambda point: point.alpha,
    u=lambda point: point.nsr,
    slope=lambda prediction: prediction.noise,
)
"""Every path as the variance-exploding one: y = x0 + u noise (Karras et al. 2022, eq. 4); Song et al. 2020, eq. 14."""


VARIABLES = {"straight": STRAIGHT, "noise_level": NOISE_LEVEL}


@dataclass(frozen=True)
class Euler(OneEvaluation):
    """Euler's method on the probability-flow ODE: the steps of DDIM with eta 0 (Song et al. 2020, eq. 14)."""

    steps: int = 20

    def step(self, x: Tensor, past: Past, there: Point, left: int, randn_like: RandnLike) -> Tensor:
        """x at the next point `there`."""
        here, prediction = past[-1]
        step = STRAIGHT.u(there) - STRAIGHT.u(here)
        return (x / STRAIGHT.scale(here) + step * STRAIGHT.slope(prediction)) * STRAIGHT.scale(there)


@dataclass(frozen=True)
class _InVariables(Sampler):
    """Solvers that can be run in either pair of variables.

    `variables`: "noise_level", in which their papers have them, or "straight", those of the rectified flow, in which a
    long step from a very high noise level does no harm. "auto" is noise levels on the exploding path, straight on
    others.
    """

    variables: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = f"auto or one of {', '.join(VARIABLES)}"
        require(self.variables in (*VARIABLES, "auto"), "variables", wanted, self.variables)

    def problem_with(self, schedule: Schedule, learned_variance: bool) -> str | None:
        """Why a model on this path, with or without learned variance, cannot be sampled so; None if it can."""
        if self.variables == "noise_level" and schedule.ends_in_noise:
            return "sampler.variables: the noise level at the end of this path is infinite; use straight"
        return super().problem_with(schedule, learned_variance)

    def variables_from(self, start: Point) -> Variables:
        """The variables for a path that is entered at `start`."""
        own = "noise_level" if start.alpha == 1 else "straight"
        return VARIABLES[own if self.variables == "auto" else self.variables]


@dataclass(frozen=True)
class Heun(_InVariables):
    """Heun's second-order method, with churn if wanted (Karras et al. 2022, algorithms 1 and 2).

    Two evaluations a step but for the last, which is Euler's: 2 · steps - 1 in all. With `s_churn` above 0 every step
    whose noise level is within [`s_tmin`, `s_tmax`] first adds noise of deviation `s_noise`, and then solves from the
    higher level: levels are sigma / alpha.
    """

    steps: int = 25
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float | None = None
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, "a number of 0 or more", value)

    @classmethod
    def steps_for(cls, evaluations: int) -> int:
        """The most steps that ask the network no more than so many times, at least one."""
        return (evaluations + 1) // 2

    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...), in its precision, at least float32."""
        points = self.points(schedule)
        to = self.variables_from(points[0])
        x = initial_sample(noise, points[0])
        for here, there in pairwise(points):
            start = self.churned(here, schedule)
            if start != here:
                fresh = self.s_noise * math.sqrt(start.nsr**2 - here.nsr**2)
                x = start.alpha * (x / here.alpha + fresh * randn_like(x))
            y, step = x / to.scale(start), to.u(there) - to.u(start)
            slope = to.slope(denoise(x, start.batch_time(x)))
            if there.sigma > 0:
                second = to.slope(denoise((y + step * slope) * to.scale(there), there.batch_time(x)))
                slope = 0.5 * (slope + second)
            x = (y + step * slope) * to.scale(there)
        return x

    def churned(self, here: Point, schedule: Schedule) -> Point:
        """Where a step starts from once noise was added: algorithm 2, line 4 and 5."""
        factor = 1 + min(self.s_churn / self.steps, math.sqrt(2) - 1)
        highest = math.inf if self.s_tmax is None else self.s_tmax
        if factor == 1 or not self.s_tmin <= here.nsr <= highest or math.isinf(here.nsr):
            return here
        higher = schedule.time_at(torch.tensor([here.nsr * factor], dtype=torch.float64))
        point = points_at(higher, schedule)[0]
        return point if math.isfinite(point.nsr) and point.nsr > here.nsr else here


# Adams-Bashforth: weights of the newest slope and of those before it
ADAMS_BASHFORTH = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


@dataclass(frozen=True)
class PLMS(_InVariables):
    """Pseudo linear multistep (Liu et al. 2022, algorithm 2, with the first step of latent diffusion's code).

    Adams-Bashforth over up to four slopes, as if the times were equally spaced; the first step is Heun's, which
    makes steps + 1 evaluations. The paper's slopes are epsilon (`variables="noise_level"`), those of the rectified flow
    velocities.
    """

    @classmethod
    def steps_for(cls, evaluations: int) -> int:
        """The most steps that ask the network no more than so many times, at least one."""
        return max(evaluations - 1, 1)

    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...), in its precision, at least float32."""
        points = self.points(schedule)
        to = self.variables_from(points[0])
        y = initial_sample(noise, points[0]) / to.scale(points[0])
        slopes: list[Tensor] = []

        def slope_at(y: Tensor, point: Point) -> Tensor:
            return to.slope(denoise(y * to.scale(point), point.batch_time(y)))

        for here, there in pairwise(points):
            step = to.u(there) - to.u(here)
            slopes = [slope_at(y, here), *slopes[:3]]
            if len(slopes) > 1:
                weights = ADAMS_BASHFORTH[len(slopes)]
                slope = sum(weight * past for weight, past in zip(weights, slopes, strict=True))
            elif there.sigma > 0:
                slope = 0.5 * (slopes[0] + slope_at(y + step * slopes[0], there))
            else:
                slope = slopes[0]
            y = y + step * slope
        return y * to.scale(points[-1])
