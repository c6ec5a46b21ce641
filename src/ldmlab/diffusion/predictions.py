"""What the network predicts, and how its output is turned into x0 and noise.

Given xt and (alpha, sigma), each of epsilon, sample, v, velocity and EDM's preconditioned output determines the others.
A prediction type is three formulas: the training `target`, the conversion `to_prediction`, and `x0_gain`, the factor by
which an error of the output becomes an error of x0, through which a loss weighting defined for x0 serves every type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ldmlab.diffusion.schedules import expand


@dataclass(frozen=True)
class Prediction:
    """The network's estimate of the clean sample and of the noise, both of xt's shape.

    `variance` is what a network with learned variance says of the next step, of xt's shape: the interpolation between
    the smallest (0) and the largest (1) in log space (Nichol and Dhariwal 2021, eq. 15).
    """

    x0: Tensor
    noise: Tensor
    variance: Tensor | None = None

    @classmethod
    def from_x0(cls, x0: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """The prediction of which x0 is known; alpha and sigma (B,), sigma above 0."""
        return cls(x0, (xt - expand(alpha, xt) * x0) / expand(sigma, xt))


@runtime_checkable
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

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What xt is multiplied by before the network sees it."""
        ...


class _AtMostUnitVariance:
    """Networks want inputs of about unit variance: exploding paths are scaled to it, the others have it already."""

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What xt is multiplied by before the network sees it."""
        return torch.hypot(alpha, sigma).clamp(min=1).reciprocal()


class Epsilon(_AtMostUnitVariance):
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


class Sample(_AtMostUnitVariance):
    """The clean sample x0 itself. Says nothing of the noise where sigma = 0, a time that no sampler asks about."""

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the output is trained to equal."""
        return x0

    def to_prediction(self, output: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """x0 and noise from the network's output at xt."""
        return Prediction.from_x0(output, xt, alpha, sigma)

    def x0_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|d x0 / d output| at (alpha, sigma)."""
        return torch.ones_like(alpha)


class V(_AtMostUnitVariance):
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


class Velocity(_AtMostUnitVariance):
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


@dataclass(frozen=True)
class Preconditioned:
    """EDM's F: x0 = c_skip y + c_out F for y = xt / alpha, data of deviation `sigma_data` (Karras et al. 2022, eq. 7).

    With their table 1's c_skip, c_out and c_in input and target have unit variance at every noise level, on any path.
    On a variance-preserving path, with sigma_data = 1, F is -v.
    """

    sigma_data: float = 1.0

    def _scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.hypot(sigma, self.sigma_data * alpha)

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the output is trained to equal."""
        scale = self._scale(alpha, sigma)
        # (x0 - c_skip y) / c_out, without dividing by sigma
        clean, noisy = sigma / (self.sigma_data * scale), self.sigma_data * alpha / scale
        return expand(clean, x0) * x0 - expand(noisy, x0) * noise

    def to_prediction(self, output: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
        """x0 and noise from the network's output at xt."""
        alpha, sigma = expand(alpha, xt), expand(sigma, xt)
        scale = self._scale(alpha, sigma)
        x0 = self.sigma_data**2 * alpha / scale**2 * xt + sigma * self.sigma_data / scale * output
        return Prediction(x0, sigma / scale**2 * xt - alpha * self.sigma_data / scale * output)

    def x0_gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|d x0 / d output| at (alpha, sigma)."""
        return sigma * self.sigma_data / self._scale(alpha, sigma)

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What xt is multiplied by before the network sees it: c_in, for xt instead of y."""
        return self._scale(alpha, sigma).reciprocal()


PREDICTIONS: dict[str, PredictionType] = {
    "epsilon": Epsilon(),
    "sample": Sample(),
    "v": V(),
    "velocity": Velocity(),
    "edm": Preconditioned(),
}
"""The prediction types by the name that a config gives them."""


def convert(
    output: Tensor, source: PredictionType, target: PredictionType, xt: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """The output that a network of type `target` would have where one of type `source` has `output`."""
    prediction = source.to_prediction(output, xt, alpha, sigma)
    return target.target(prediction.x0, prediction.noise, alpha, sigma)
