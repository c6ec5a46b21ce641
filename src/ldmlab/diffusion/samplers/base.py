"""What all samplers share: the points of the path that they visit, the noise that they start from, the loop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ldmlab.diffusion.grids import GRIDS, Grid, grid_named
from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.schedules import Schedule
from ldmlab.settings import check_types, require

Denoise = Callable[[Tensor, Tensor], Prediction]
"""(xt (B, ...), t (B,)) -> x0 and noise."""

RandnLike = Callable[[Tensor], Tensor]
"""A tensor (B, ...) -> fresh standard normal noise of its shape."""


class PerSampleNoise:
    """Noise from one seed per sample, so that a picture depends on its own seed and never on the batch it is in."""

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """Fresh standard normal noise of `like`'s shape (B, ...), B being the number of seeds."""
        draws = [torch.randn(like.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(draws).to(like)


@dataclass(frozen=True)
class Point:
    """A point of the path: time t and the coefficients there, xt = alpha x0 + sigma noise."""

    t: float
    alpha: float
    sigma: float

    @property
    def coefficients(self) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) as tensors (), float64."""
        return torch.tensor(self.alpha, dtype=torch.float64), torch.tensor(self.sigma, dtype=torch.float64)

    @property
    def nsr(self) -> float:
        """sigma / alpha, the noise level of xt / alpha."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def logsnr(self) -> float:
        """log(alpha / sigma), half the logarithm of the signal-to-noise ratio: lambda in Lu et al. 2022."""
        return math.inf if self.sigma == 0 else -math.inf if self.alpha == 0 else math.log(self.alpha / self.sigma)

    def batch_time(self, x: Tensor) -> Tensor:
        """The time for each sample of a batch x (B, ...): (B,), as exact as x."""
        return torch.full(x.shape[:1], self.t, dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class Sampler(ABC):
    """A way back along the path.

    `steps` is exactly how many steps are taken; how often each asks the network is the method's. `grid` says at which
    times: one of `GRIDS`, "auto" for the one that is usual for the schedule, or an object that gives them.
    """

    steps: int = 50
    grid: str | Grid = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        require(self.steps >= 1, "steps", "a whole number of 1 or more", self.steps)
        known = self.grid in (*GRIDS, "auto") if isinstance(self.grid, str) else callable(self.grid)
        wanted = f"auto, one of {', '.join(GRIDS)}, or a grid of your own with a _target_"
        require(known, "grid", wanted, self.grid)

    @abstractmethod
    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...), in its precision, at least float32."""

    def problem_with(self, schedule: Schedule, learned_variance: bool) -> str | None:
        """Why a model on this path, with or without learned variance, cannot be sampled so; None if it can."""
        return None

    @classmethod
    def steps_for(cls, evaluations: int) -> int:
        """The most steps that ask the network no more than so many times, at least one."""
        return evaluations

    def points(self, schedule: Schedule) -> list[Point]:
        """The steps + 1 points of the path that are visited, the last of them the data."""
        times = grid_named(self.grid, schedule)(self.steps, schedule)
        falling = bool((times.diff() < 0).all()) and times[-1].item() >= 0 and times[0].item() <= 1
        if times.shape != (self.steps + 1,) or not falling:
            raise ValueError(f"{self.grid} does not give {self.steps + 1} falling times from 1 to 0 here")
        return points_at(times, schedule)


def points_at(times: Tensor, schedule: Schedule) -> list[Point]:
    """The points of the path at float64 times (N,)."""
    alphas, sigmas = schedule.coefficients(times)
    return [Point(*point) for point in zip(times.tolist(), alphas.tolist(), sigmas.tolist(), strict=True)]


def initial_sample(noise: Tensor, start: Point) -> Tensor:
    """Where sampling starts: noise of the variance that normalised data have at `start`, at least in float32.

    That is 1 on a variance-preserving path, wherever it is entered, and at t = 1 of the rectified flow.
    """
    exact = noise.to(torch.promote_types(noise.dtype, torch.float32))
    return exact * math.hypot(start.alpha, start.sigma)


Past = list[tuple[Point, Prediction]]
"""Points visited and what the network said there, the newest last."""


@dataclass(frozen=True)
class OneEvaluation(Sampler):
    """Samplers that ask the network once a step and go on from this answer and the last few."""

    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...), in its precision, at least float32."""
        points = self.points(schedule)
        x = initial_sample(noise, points[0])
        past: Past = []
        for step, (here, there) in enumerate(pairwise(points)):
            past = [*past[-3:], (here, denoise(x, here.batch_time(x)))]
            x = self.step(x, past, there, self.steps - step, randn_like)
        return x

    @abstractmethod
    def step(self, x: Tensor, past: Past, there: Point, left: int, randn_like: RandnLike) -> Tensor:
        """x at the next point `there`, from x at the last point of `past`; `left` steps are left, this one included."""
