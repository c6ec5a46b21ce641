"""Samplers that walk the Markov chain backwards, with noise at every step or without: DDPM, DDIM, Euler ancestral."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ldmlab.diffusion.posterior import NOT_LEARNED, VARIANCES, Posterior
from ldmlab.diffusion.samplers.base import OneEvaluation, Past, Point, RandnLike
from ldmlab.diffusion.schedules import Schedule
from ldmlab.settings import require


@dataclass(frozen=True)
class DDPM(OneEvaluation):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), with any stride.

    `variance` is "small", the posterior's (beta tilde, optimal for one known x0), "large", the forward step's (beta,
    optimal for standard normal data; Ho et al. 2020, section 3.2), or "learned", what the network says between these
    two (Nichol and Dhariwal 2021, eq. 15). The last step adds no noise.
    """

    steps: int = 1000
    variance: str = "small"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.variance in VARIANCES, "variance", f"one of {', '.join(VARIANCES)}", self.variance)

    def problem_with(self, schedule: Schedule, learned_variance: bool) -> str | None:
        """Why a model on this path, with or without learned variance, cannot be sampled so; None if it can."""
        if self.variance == "learned" and not learned_variance:
            return f"sampler.variance: {NOT_LEARNED}"
        return super().problem_with(schedule, learned_variance)

    def step(self, x: Tensor, past: Past, there: Point, left: int, randn_like: RandnLike) -> Tensor:
        """x at the next point `there`."""
        here, prediction = past[-1]
        posterior = Posterior.between(*here.coefficients, *there.coefficients)
        mean = posterior.mean(prediction.x0, x)
        if left == 1:
            return mean
        std = (0.5 * posterior.log_variance(self.variance, prediction.variance, x)).exp()
        return mean + std * randn_like(x)


@dataclass(frozen=True)
class DDIM(OneEvaluation):
    """Denoising diffusion implicit models (Song et al. 2020, eq. 12 and 16).

    `eta` 0 is deterministic, 1 has the variance of DDPM's posterior.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.eta <= 1, "eta", "a number from 0 to 1", self.eta)

    def step(self, x: Tensor, past: Past, there: Point, left: int, randn_like: RandnLike) -> Tensor:
        """x at the next point `there`."""
        here, prediction = past[-1]
        small = Posterior.between(*here.coefficients, *there.coefficients).small.item()
        fresh = self.eta * math.sqrt(small)
        direction = math.sqrt(max(there.sigma**2 - fresh**2, 0.0))
        x = there.alpha * prediction.x0 + direction * prediction.noise
        return x + fresh * randn_like(x) if fresh > 0 else x


@dataclass(frozen=True)
class EulerAncestral(DDIM):
    """Euler's method with noise put back at every step (Crowson's k-diffusion).

    In noise levels sigma / alpha it goes down to sqrt(there² - up²) and back up by `eta` · up = there ·
    sqrt(1 - (there / here)²): the very step of DDIM with `eta`, here 1 by default, as a test shows.
    """

    eta: float = 1.0
