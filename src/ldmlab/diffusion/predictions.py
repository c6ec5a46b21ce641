"""What the network predicts, and how its output is turned into x0 and noise.

Given xt and (alpha, sigma), each of epsilon, sample, v and velocity determines the others. A prediction type is three
formulas: the training `target`, the conversion `to_prediction`, and `x0_gain`, the factor by which an error of the
output becomes an error of x0, through which a loss weighting defined for x0 serves every type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ldmlab.diffusion.schedules import expand


@dataclass(frozen=True)
class Prediction:
    """The network's estimate of the clean sample and of the noise, both of xt's shape."""

    x0: Tensor
    noise: Tensor


class PredictionType(Protocol):
    """One parametrisation of the network's output. All tensors (B, ...), all coefficients (B,)."""

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the output is trained to equal."""
        ...

    def to_prediction(self, output: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """x0 and noise from the network's output at xt."""
        ...

    def x0_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|d x0 / d output| at (alpha, sigma)."""
        ...


class Epsilon:
    """The noise (Ho et al. 2020, eq. 14). Useless where alpha = 0: there xt says all about the noise."""

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the output is trained to equal."""
        return noise

    def to_prediction(self, output: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """x0 and noise from the network's output at xt."""
        return Prediction((xt - expand(sigma, xt) * output) / expand(alpha, xt), output)

    def x0_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|d x0 / d output| at (alpha, sigma)."""
        return sigma / alpha


class V:
    """v = alpha · noise - sigma · x0 (Salimans and Ho 2022, section 4), bounded at both ends of the path."""

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the output is trained to equal."""
        return expand(alpha, x0) * noise - expand(sigma, x0) * x0

    def to_prediction(self, output: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """x0 and noise from the network's output at xt."""
        alpha, sigma = expand(alpha, xt), expand(sigma, xt)
        norm = alpha**2 + sigma**2  # 1 for variance-preserving schedules
        return Prediction((alpha * xt - sigma * output) / norm, (sigma * xt + alpha * output) / norm)

    def x0_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|d x0 / d output| at (alpha, sigma)."""
        return sigma / (alpha**2 + sigma**2)


class Velocity:
    """noise - x0, the flow's velocity dxt/dt on the straight path (Lipman et al. 2022, eq. 23).

    On another path it is the velocity in straight-line variables, d(xt / (alpha + sigma)) / d(sigma / (alpha + sigma)),
    and so is defined, and bounded, for every schedule.
    """

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the output is trained to equal."""
        return noise - x0

    def to_prediction(self, output: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """x0 and noise from the network's output at xt."""
        alpha, sigma = expand(alpha, xt), expand(sigma, xt)
        return Prediction((xt - sigma * output) / (alpha + sigma), (xt + alpha * output) / (alpha + sigma))

    def x0_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|d x0 / d output| at (alpha, sigma)."""
        return sigma / (alpha + sigma)


PREDICTIONS: dict[str, PredictionType] = {"epsilon": Epsilon(), "v": V(), "velocity": Velocity()}
"""The prediction types by the name that a config gives them."""
