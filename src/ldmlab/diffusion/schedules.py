"""Noise schedules: the coefficients of the path `xt = alpha(t) x0 + sigma(t) noise`.

Every schedule is a frozen object with one method, `coefficients(t) -> (alpha, sigma)`, for t in [0, 1].
Variance-preserving schedules (alpha² + sigma² = 1) are given by alpha_bar = alpha². Those that a paper defines by a
table of `steps` betas are that table on the grid t = k / steps, with log(alpha_bar) linear in between, so that
discrete training is exact and continuous training is possible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """A path from data to noise."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), both of t's shape and dtype, for times t in [0, 1]."""
        ...


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient (B,) shaped (B, 1, ..., 1), to multiply a batch `like` (B, ...)."""
    return coefficient.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """A draw of q(xt | x0) (Ho et al. 2020, eq. 4): x0 and noise (B, ...), t (B,)."""
    alpha, sigma = schedule.coefficients(t)
    return expand(alpha, x0) * x0 + expand(sigma, x0) * noise


class BetaTable:
    """A variance-preserving schedule given by its betas; subclasses define `betas()`."""

    steps: int

    def betas(self) -> Tensor:
        """beta_1 ... beta_steps in float64."""
        raise NotImplementedError

    @cached_property
    def log_alpha_bar(self) -> Tensor:
        """log(alpha_bar) at t = 0, 1/steps, ..., 1 in float64 (Ho et al. 2020, below eq. 4)."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas()).cumsum(0)])

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t in [0, 1]."""
        table = self.log_alpha_bar.to(t.device)
        position = t.double().clamp(0, 1) * self.steps
        below = position.floor().long().clamp(max=self.steps - 1)
        log_alpha_bar = torch.lerp(table[below], table[below + 1], position - below)
        # sigma through expm1: 1 - alpha_bar loses all its digits near t = 0
        return (0.5 * log_alpha_bar).exp().to(t.dtype), (-torch.expm1(log_alpha_bar)).sqrt().to(t.dtype)


@dataclass(frozen=True)
class Linear(BetaTable):
    """beta linear from `beta_start` to `beta_end` over `steps` (Ho et al. 2020, section 4)."""

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def betas(self) -> Tensor:
        """beta_1 ... beta_steps in float64."""
        return torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)


@dataclass(frozen=True)
class Cosine(BetaTable):
    """alpha_bar(t) = f(t) / f(0), f(t) = cos²((t + s) / (1 + s) · π/2) (Nichol and Dhariwal 2021, eq. 17).

    The betas are clipped to `beta_max`, as there, so that alpha stays above zero at t = 1.
    """

    steps: int = 1000
    s: float = 0.008
    beta_max: float = 0.999

    def betas(self) -> Tensor:
        """beta_1 ... beta_steps in float64."""
        t = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        f = torch.cos((t + self.s) / (1 + self.s) * math.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=self.beta_max)


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path xt = (1 - τ) x0 + τ noise (Liu et al. 2022, eq. 1; Lipman et al. 2022, eq. 22).

    τ = shift · t / (1 + (shift - 1) t) is the resolution shift of Esser et al. 2024 (eq. 23): above 1 it moves
    training and sampling towards more noise, as larger images or latents need.
    """

    shift: float = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t in [0, 1]."""
        tau = self.shift * t / (1 + (self.shift - 1) * t)
        return 1 - tau, tau
