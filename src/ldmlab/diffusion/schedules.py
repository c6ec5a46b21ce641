"""Noise schedules: the coefficients of the path `xt = alpha(t) x0 + sigma(t) noise`.

Every schedule is a frozen object that gives `coefficients(t) -> (alpha, sigma)` for t in [0, 1] and, the other way
round, `time_at(nsr)`, the time at which the noise-to-signal ratio sigma / alpha has a given value: in that ratio all
paths are the same, so solvers and time grids that are made for one path serve every other.

Variance-preserving schedules (alpha² + sigma² = 1) that a paper defines by a table of `steps` betas are that table on
the grid t = k / steps, with alpha linear in between, so that discrete training is exact and continuous training is
possible.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ldmlab.settings import check_types, is_number, require


class Schedule(ABC):
    """A path from data to noise.

    `grid` names the time grid on which this path is usually walked back, `smallest_time` is the last time at which a
    network is asked before the data are reached, and `chain` the number of steps of the Markov chain that a discrete
    schedule defines, None for a continuous one.
    """

    grid: ClassVar[str] = "uniform"

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), both of t's shape and dtype, for times t in [0, 1]."""

    @abstractmethod
    def time_at(self, nsr: Tensor) -> Tensor:
        """The time t, of nsr's shape and dtype, at which sigma / alpha is nsr, from 0 to its value at t = 1."""

    @property
    def smallest_time(self) -> float:
        """The last time at which a network is asked."""
        return 1e-3

    @property
    def chain(self) -> int | None:
        """Number of steps of the Markov chain that the schedule defines."""
        return None

    @property
    def most_steps(self) -> int:
        """The largest number of even steps of which the first does not end below `smallest_time`."""
        return round(1 / self.smallest_time)

    @property
    def ends_in_noise(self) -> bool:
        """Whether nothing of the data is left at t = 1, where sigma / alpha is then infinite."""
        return self.coefficients(torch.ones((), dtype=torch.float64))[0].item() == 0

    def for_dimension(self, dimension: int) -> Schedule:
        """The schedule for samples of `dimension` values, where it depends on that."""
        return self


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient (B,) or () shaped (B, 1, ..., 1), to multiply a batch `like` (B, ...), on its device."""
    return coefficient.to(like).reshape(-1, *[1] * (like.ndim - 1))


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """A draw of q(xt | x0) (Ho et al. 2020, eq. 4): x0 and noise (B, ...), t (B,)."""
    alpha, sigma = schedule.coefficients(t)
    return expand(alpha, x0) * x0 + expand(sigma, x0) * noise


@dataclass(frozen=True)
class BetaTable(Schedule):
    """A variance-preserving chain of `steps` steps given by its betas.

    With `zero_terminal_snr` alpha is shifted and scaled so that nothing of the data is left at t = 1, as sampling
    starts there from pure noise (Lin et al. 2023, algorithm 1).
    """

    steps: int = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        least = 2 if self.zero_terminal_snr else 1
        require(self.steps >= least, "steps", f"a whole number of {least} or more", self.steps)
        if not (self.alphas.diff() < 0).all():
            raise ValueError("every beta must be above 0 and below 1, which these settings do not give")

    def betas(self) -> Tensor:
        """beta_1 ... beta_steps in float64, before `zero_terminal_snr` changes them."""
        raise NotImplementedError

    @cached_property
    def alphas(self) -> Tensor:
        """alpha at t = 0, 1/steps, ..., 1 in float64: the square root of Ho et al.'s alpha_bar (2020, below eq. 4)."""
        alpha = (0.5 * torch.log1p(-self.betas()).cumsum(0)).exp()
        if self.zero_terminal_snr:
            alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        return torch.cat([torch.ones(1, dtype=torch.float64), alpha])

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        return {}

    def _table(self, device: torch.device) -> Tensor:
        # kept on each device: a copy at every call is a wait for the GPU at every step
        if device not in self._tables:
            self._tables[device] = self.alphas.to(device)
        return self._tables[device]

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t in [0, 1]."""
        table = self._table(t.device)
        position = t.double().clamp(0, 1) * self.steps
        below = position.floor().long().clamp(max=self.steps - 1)
        alpha = torch.lerp(table[below], table[below + 1], position - below)
        return alpha.to(t.dtype), ((1 - alpha) * (1 + alpha)).sqrt().to(t.dtype)

    def time_at(self, nsr: Tensor) -> Tensor:
        """The time at which sigma / alpha is nsr; 1 beyond the end of the path."""
        table = self._table(nsr.device)
        alpha = (1 + nsr.double() ** 2).rsqrt().clamp(min=table[-1])
        # the table falls, searchsorted wants it to rise
        above = torch.searchsorted(-table, -alpha).clamp(1, self.steps)
        fraction = (table[above - 1] - alpha) / (table[above - 1] - table[above])
        return ((above - 1 + fraction) / self.steps).to(nsr.dtype)

    @property
    def smallest_time(self) -> float:
        """The first step of the chain."""
        return 1 / self.steps

    @property
    def chain(self) -> int:
        """Number of steps of the Markov chain."""
        return self.steps


@dataclass(frozen=True)
class Linear(BetaTable):
    """beta linear from `beta_start` to `beta_end` over `steps` (Ho et al. 2020, section 4)."""

    beta_start: float = 1e-4
    beta_end: float = 0.02

    def betas(self) -> Tensor:
        """beta_1 ... beta_steps in float64."""
        return torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)


@dataclass(frozen=True)
class ScaledLinear(BetaTable):
    """sqrt(beta) linear from that of `beta_start` to that of `beta_end` (Rombach et al. 2022; "linear" in its code).

    Less noise in the first steps than `Linear` between the same ends. Their class and unconditional models go from
    0.0015 to 0.0195, their text models and Stable Diffusion from 0.00085 to 0.012.
    """

    beta_start: float = 0.0015
    beta_end: float = 0.0195

    def betas(self) -> Tensor:
        """beta_1 ... beta_steps in float64."""
        roots = torch.tensor([self.beta_start, self.beta_end], dtype=torch.float64).sqrt()
        return torch.linspace(roots[0].item(), roots[1].item(), self.steps, dtype=torch.float64) ** 2


def betas_from(alpha_bar: Tensor, beta_max: float) -> Tensor:
    """beta_k = 1 - alpha_bar_k / alpha_bar_(k-1), at most `beta_max`, for alpha_bar at k = 0 ... steps."""
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=beta_max)


@dataclass(frozen=True)
class Cosine(BetaTable):
    """alpha_bar(t) = f(t) / f(0), f(t) = cos²((t + s) / (1 + s) · π/2) (Nichol and Dhariwal 2021, eq. 17).

    The betas are clipped to `beta_max`, as there, so that alpha stays above zero at t = 1.
    """

    s: float = 0.008
    beta_max: float = 0.999

    def betas(self) -> Tensor:
        """beta_1 ... beta_steps in float64."""
        t = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        return betas_from(torch.cos((t + self.s) / (1 + self.s) * math.pi / 2) ** 2, self.beta_max)


@dataclass(frozen=True)
class Sigmoid(BetaTable):
    """alpha_bar(t) = (g(1) - g(t)) / (g(1) - g(0)), g(t) = sigmoid((start + t (end - start)) / tau).

    Jabri et al. 2022; Chen 2023, algorithm 1. A larger `tau` comes close to a straight line, a smaller one
    spends more of the chain near both ends. The betas are clipped to `beta_max`, as the cosine schedule's are.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    beta_max: float = 0.999

    def betas(self) -> Tensor:
        """beta_1 ... beta_steps in float64."""
        t = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        g = torch.sigmoid((self.start + t * (self.end - self.start)) / self.tau)
        return betas_from((g[-1] - g) / (g[-1] - g[0]), self.beta_max)


@dataclass(frozen=True)
class SigmoidBeta(BetaTable):
    """beta = beta_start + (beta_end - beta_start) sigmoid(z), z from -6 to 6 (Xu et al. 2022, GeoDiff's code).

    Not to be confused with `Sigmoid`, whose alpha_bar is a sigmoid; diffusers means this one.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02

    def betas(self) -> Tensor:
        """beta_1 ... beta_steps in float64."""
        z = torch.linspace(-6, 6, self.steps, dtype=torch.float64)
        return self.beta_start + (self.beta_end - self.beta_start) * torch.sigmoid(z)


@dataclass(frozen=True)
class EDM(Schedule):
    """The variance-exploding path xt = x0 + sigma noise (Karras et al. 2022, section 3).

    Time is what their eq. 5 spaces evenly, from `sigma_min` at `smallest_time` to `sigma_max` at t = 1; below
    `sigma_min`, where no network is asked, sigma is linear in t down to the data.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    grid = "karras"

    def __post_init__(self) -> None:
        check_types(self)
        levels = (self.sigma_min, self.sigma_max)
        require(0 < self.sigma_min < self.sigma_max < math.inf, "sigma_min", "a number between 0 and sigma_max", levels)
        require(0 < self.rho < math.inf, "rho", "a finite number above 0", self.rho)

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t in [0, 1]; above 1, where churn may lead, sigma goes on to grow."""
        low, high = self._roots
        share = ((t - self.smallest_time) / (1 - self.smallest_time)).clamp(min=0)
        sigma = (low + share * (high - low)) ** self.rho
        return torch.ones_like(t), torch.minimum(t / self.smallest_time, torch.ones_like(t)) * sigma

    def time_at(self, nsr: Tensor) -> Tensor:
        """The time at which sigma is nsr."""
        low, high = self._roots
        share = (nsr ** (1 / self.rho) - low) / (high - low)
        below = nsr / self.sigma_min * self.smallest_time
        return torch.where(nsr < self.sigma_min, below, self.smallest_time + share * (1 - self.smallest_time))


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """The straight path xt = (1 - τ) x0 + τ noise (Liu et al. 2022, eq. 1; Lipman et al. 2022, eq. 22).

    τ = shift · t / (1 + (shift - 1) t) is the resolution shift of Esser et al. 2024 (eq. 23): above 1 it moves
    training and sampling towards more noise, as larger images or latents need. "auto" is
    sqrt(dimension / base_dimension), from the number of values of a sample; 4096 is that of f8 latents of 256 px
    (Zheng et al. 2025, section 4.2).
    """

    shift: float | str = 1.0
    base_dimension: int = 4096

    def __post_init__(self) -> None:
        require(
            is_number(self.base_dimension) and self.base_dimension > 0,
            "base_dimension",
            "a positive number",
            self.base_dimension,
        )
        valid = self.shift == "auto" or (is_number(self.shift) and 0 < float(self.shift) < math.inf)
        require(valid, "shift", "a positive number or auto", self.shift)

    def for_dimension(self, dimension: int) -> RectifiedFlow:
        """The schedule with the shift that "auto" means for samples of `dimension` values."""
        return replace(self, shift=(dimension / self.base_dimension) ** 0.5) if self.shift == "auto" else self

    @property
    def _shift(self) -> float:
        if self.shift == "auto":
            raise ValueError("shift=auto depends on the size of the latent: for_dimension(...) sets it")
        return float(self.shift)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t in [0, 1]."""
        tau = shifted(t, self._shift)
        return 1 - tau, tau

    def time_at(self, nsr: Tensor) -> Tensor:
        """The time at which sigma / alpha is nsr, infinity included."""
        return shifted(1 / (1 + 1 / nsr), 1 / self._shift)


def shifted(t: Tensor, shift: float) -> Tensor:
    """shift · t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23); `1 / shift` turns it back."""
    # the denominator in the form that is exact at both ends and for shift = 1
    return shift * t / (shift + (1 - shift) * (1 - t))
