"""How much the loss counts at each time, as a factor on the squared error of the network's output.

Most weightings are defined in their papers for the error of x0 or of epsilon. The error of x0 is that of the output
times `x0_gain`, the error of epsilon that of x0 times SNR, so one definition serves every prediction type.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmlab.diffusion.predictions import PredictionType
from ldmlab.diffusion.schedules import Schedule
from ldmlab.settings import check_types, require


class Weighting(ABC):
    """A loss weight per sample."""

    @abstractmethod
    def __call__(self, t: Tensor, schedule: Schedule, prediction: PredictionType) -> Tensor:
        """Weights (B,) of the output's squared error at times t (B,)."""


@dataclass(frozen=True)
class Uniform(Weighting):
    """Every time counts the same; with epsilon this is the simplified loss of Ho et al. 2020 (eq. 14)."""

    def __call__(self, t: Tensor, schedule: Schedule, prediction: PredictionType) -> Tensor:
        """Weights (B,) of the output's squared error at times t (B,)."""
        return torch.ones_like(t)


class OfX0(Weighting):
    """A weight of the squared error of x0 by SNR = (alpha / sigma)², carried over to the network's output."""

    @abstractmethod
    def of_x0(self, snr: Tensor) -> Tensor:
        """The weight of the squared error of x0 at signal-to-noise ratios (B,)."""

    def __call__(self, t: Tensor, schedule: Schedule, prediction: PredictionType) -> Tensor:
        """Weights (B,) of the output's squared error at times t (B,)."""
        alpha, sigma = schedule.coefficients(t)
        return self.of_x0((alpha / sigma) ** 2) * prediction.x0_gain(alpha, sigma) ** 2


@dataclass(frozen=True)
class SNR(OfX0):
    """SNR on x0: the uniform weight of epsilon for every prediction type (Salimans and Ho 2022, section 4)."""

    def of_x0(self, snr: Tensor) -> Tensor:
        """The weight of the squared error of x0."""
        return snr


@dataclass(frozen=True)
class TruncatedSNR(OfX0):
    """max(SNR, 1) on x0: the larger error of x0 and epsilon (Salimans and Ho 2022, section 4)."""

    def of_x0(self, snr: Tensor) -> Tensor:
        """The weight of the squared error of x0."""
        return snr.clamp(min=1)


@dataclass(frozen=True)
class MinSNR(OfX0):
    """min(SNR, gamma) on x0 (Hang et al. 2023, eq. 5)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.gamma > 0, "gamma", "a number above 0", self.gamma)

    def of_x0(self, snr: Tensor) -> Tensor:
        """The weight of the squared error of x0."""
        return snr.clamp(max=self.gamma)


@dataclass(frozen=True)
class EDM(OfX0):
    """SNR + 1 / sigma_data² on x0: EDM's lambda (Karras et al. 2022, table 1), for their F a uniform weight."""

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        require(0 < self.sigma_data < math.inf, "sigma_data", "a finite number above 0", self.sigma_data)

    def of_x0(self, snr: Tensor) -> Tensor:
        """The weight of the squared error of x0."""
        return snr + 1 / self.sigma_data**2


@dataclass(frozen=True)
class P2(OfX0):
    """1 / (k + SNR)^gamma on epsilon: less weight where noise is too small to be seen (Choi et al. 2022, eq. 8)."""

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.gamma < math.inf, "gamma", "a finite number of 0 or more", self.gamma)
        require(0 < self.k < math.inf, "k", "a finite number above 0", self.k)

    def of_x0(self, snr: Tensor) -> Tensor:
        """The weight of the squared error of x0."""
        return snr / (self.k + snr) ** self.gamma


@dataclass(frozen=True)
class VariationalBound(Weighting):
    """The weights of the variational bound on a chain of `steps` steps: steps · (SNR(s) - SNR(t)) / 2 on x0.

    s is one step before t (Ho et al. 2020, eq. 12, with the posterior's variance; Kingma et al. 2021, section 4). The
    first step ends at the data, where SNR is infinite, and counts as its decoder: a Gaussian of deviation sigma(t).
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        check_types(self)
        require(self.steps >= 1, "steps", "a whole number of 1 or more", self.steps)

    def __call__(self, t: Tensor, schedule: Schedule, prediction: PredictionType) -> Tensor:
        """Weights (B,) of the output's squared error at times t (B,)."""
        exact = t.double()
        alpha, sigma = schedule.coefficients(exact)
        before = schedule.coefficients((exact - 1 / self.steps).clamp(min=0))
        last = exact < 1.5 / self.steps
        gained = torch.where(last, 1 / sigma**2, (before[0] / before[1]) ** 2 - (alpha / sigma) ** 2)
        return (0.5 * self.steps * gained * prediction.x0_gain(alpha, sigma) ** 2).to(t.dtype)
