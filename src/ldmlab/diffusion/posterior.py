"""A step of the chain backwards where x0 is known: q(xs | xt, x0), s < t, on any Gaussian path, with any stride."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldmlab.diffusion.schedules import Schedule, expand

VARIANCES = ("small", "large", "learned")
"""Of the reverse steps: see `Posterior`."""

NOT_LEARNED = "this model has not learned its variance (scheduler.learned_variance); use small or large"


@dataclass(frozen=True)
class Posterior:
    """Mean and variance of q(xs | xt, x0) (Ho et al. 2020, eq. 7); all of one shape, () or (B,).

    `small` is its variance (beta tilde on DDPM's chain) and the least that a reverse step can have; `large` is that of
    the forward step q(xt | xs) (beta), the most (Ho et al. 2020, section 3.2).
    """

    x0_weight: Tensor
    xt_weight: Tensor
    small: Tensor
    large: Tensor

    @classmethod
    def between(cls, alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Posterior:
        """For a step from coefficients at t to those at s < t."""
        large = (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).clamp(min=0)
        return cls(
            x0_weight=alpha_s * large / sigma_t**2,
            xt_weight=alpha_t / alpha_s * (sigma_s / sigma_t) ** 2,
            small=large * (sigma_s / sigma_t) ** 2,
            large=large,
        )

    @classmethod
    def on_chain(cls, t: Tensor, schedule: Schedule, steps: int) -> Posterior:
        """For single steps of a chain of `steps` steps from times t (B,) = k / steps, in float64.

        The variance of the first step, which ends at the data, would be 0: as for Nichol and Dhariwal 2021, it is that
        of the second.
        """
        t = t.double()
        ends = schedule.coefficients((t - 1 / steps).clamp(min=0))
        posterior = cls.between(*schedule.coefficients(t), *ends)
        second, first = (schedule.coefficients(torch.full_like(t, k / steps)) for k in (2, 1))
        small = torch.where(t < 1.5 / steps, cls.between(*second, *first).small, posterior.small)
        return cls(posterior.x0_weight, posterior.xt_weight, small, posterior.large)

    def mean(self, x0: Tensor, xt: Tensor) -> Tensor:
        """The mean for x0 and xt (B, ...)."""
        return expand(self.x0_weight, xt) * x0 + expand(self.xt_weight, xt) * xt

    def log_variance(self, variance: str, fraction: Tensor | None, like: Tensor) -> Tensor:
        """The log variance of a reverse step that is "small", "large" or "learned", to broadcast with `like` (B, ...).

        Learned: `fraction` (B, ...) of the way from small to large in log space (Nichol and Dhariwal 2021, eq. 15).
        """
        small, large = expand(self.small.log(), like), expand(self.large.log(), like)
        if variance == "learned":
            if fraction is None:
                raise ValueError("a model that learned no variance was asked for it")
            return fraction * large + (1 - fraction) * small
        return {"small": small, "large": large}[variance]
