"""The variational bound on the negative log-likelihood, term by term, in bits a dimension.

For a chain x_T, ..., x_0 the bound is L_T + ... + L_0 (Ho et al. 2020, eq. 5): what the end of the path still says of
the data, the divergence of each reverse step from the posterior, and what the decoder of the first step pays for the
data. Every schedule gives a chain: its path at t = k / steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmlab.diffusion.posterior import Posterior
from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.schedules import Schedule


@dataclass(frozen=True)
class Bins:
    """The cells of data with finitely many values, in the units that diffusion sees; each of shape (1, C, 1, 1).

    A value x stands for x ± `half_width`; `lowest` and `highest` stand for all that is beyond them, too.
    """

    half_width: Tensor
    lowest: Tensor
    highest: Tensor


def bits_per_dimension(nats: Tensor) -> Tensor:
    """The mean of nats (B, ...) over a sample's values, in bits: (B,)."""
    return nats.flatten(1).mean(1) / math.log(2)


def normal_divergence(difference: Tensor, log_variance_q: Tensor, log_variance_p: Tensor) -> Tensor:
    """KL(q || p) in nats of normal distributions whose means differ by `difference`; elementwise."""
    ratio = log_variance_q - log_variance_p
    return 0.5 * (ratio.exp() + difference**2 * (-log_variance_p).exp() - 1 - ratio)


def prior_term(x0: Tensor, schedule: Schedule) -> Tensor:
    """L_T = KL(q(x_T | x0) || p(x_T)) for x0 (B, ...), p being what sampling starts from; (B,) bits a dimension."""
    alpha, sigma = (c.item() for c in schedule.coefficients(torch.ones((), dtype=torch.float64)))
    log_q, log_p = 2 * math.log(sigma), math.log(alpha**2 + sigma**2)
    exact = x0.double()
    return bits_per_dimension(
        normal_divergence(alpha * exact, torch.full_like(exact, log_q), torch.full_like(exact, log_p))
    )


def step_term(
    x0: Tensor,
    xt: Tensor,
    prediction: Prediction,
    t: Tensor,
    schedule: Schedule,
    steps: int,
    variance: str,
    bins: Bins | None = None,
) -> Tensor:
    """The term of the step from times t (B,) = k / steps: L_(k-1), for k = 1 the decoder's L_0; (B,) bits a dimension.

    `variance` of the reverse steps is "small", "large" or "learned". The decoder gives the probability of a cell where
    the data have `bins` (Ho et al. 2020, eq. 13), else a density, whose bits can be negative.
    """
    posterior = Posterior.on_chain(t, schedule, steps)
    mean = posterior.mean(prediction.x0, xt)
    log_variance = posterior.log_variance(variance, prediction.variance, xt).expand_as(xt)
    divergence = normal_divergence(
        posterior.mean(x0, xt) - mean, posterior.log_variance("small", None, xt), log_variance
    )
    terms = bits_per_dimension(divergence)
    first = t < 1.5 / steps
    if first.any():
        data = (x0[first], mean[first], log_variance[first])
        log_p = log_density(*data) if bins is None else log_probability(*data, bins)
        terms = terms.index_put((first,), bits_per_dimension(-log_p))
    return terms


def log_density(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x; mean, exp(log_variance)), elementwise."""
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean) ** 2 * (-log_variance).exp())


def log_probability(x: Tensor, mean: Tensor, log_variance: Tensor, bins: Bins) -> Tensor:
    """log of the share of N(mean, exp(log_variance)) in the cell of x, elementwise (Ho et al. 2020, eq. 13).

    Of a cell far from the mean the difference of two distribution functions would be lost in rounding; the side with
    the smaller values is taken, and what is left below 1e-30 counts as that.
    """
    scale = (-0.5 * log_variance).exp().double()
    distance = (x - mean).double()
    half = bins.half_width.to(distance)
    upper, lower = (distance + half) * scale, (distance - half) * scale
    upper = torch.where(x > bins.highest.to(x) - half.to(x), torch.inf, upper)
    lower = torch.where(x < bins.lowest.to(x) + half.to(x), -torch.inf, lower)
    flip = distance > 0  # the normal distribution is symmetric: use the side where its function is near 0
    high, low = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    share = torch.special.ndtr(high) - torch.special.ndtr(low)
    return share.clamp(min=1e-30).log().to(x.dtype)
