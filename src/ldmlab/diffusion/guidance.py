"""Guidance: how the conditional and the unconditional prediction are combined, in the sampler and for all channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldmlab.diffusion.predictions import Prediction
from ldmlab.types import Conditioning

ConditionalDenoise = Callable[[Tensor, Tensor, Conditioning], Prediction]
"""(xt (B, ...), t (B,), conditioning) -> x0 and noise."""


class Guidance(Protocol):
    """A way to evaluate a conditional model."""

    def __call__(
        self, denoise: ConditionalDenoise, xt: Tensor, t: Tensor, conditioning: Conditioning, null: Conditioning
    ) -> Prediction:
        """The guided prediction at xt; `null` is the conditioning of the unconditional model."""
        ...


@dataclass(frozen=True)
class NoGuidance:
    """The conditional model as it is."""

    def __call__(
        self, denoise: ConditionalDenoise, xt: Tensor, t: Tensor, conditioning: Conditioning, null: Conditioning
    ) -> Prediction:
        """The guided prediction at xt; `null` is the conditioning of the unconditional model."""
        return denoise(xt, t, conditioning)


@dataclass(frozen=True)
class ClassifierFree:
    """unconditional + scale · (conditional - unconditional) (Ho and Salimans 2022, eq. 6, with scale = 1 + w).

    Scale 1 is the conditional model and costs one evaluation. Guidance acts for t within [`start`, `stop`] only
    (Kynkäänniemi et al. 2024); outside, the second evaluation is not paid. Both evaluations go through the network
    as one batch.
    """

    scale: float = 2.0
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "start", "stop"):
            if not isinstance(getattr(self, name), (int, float)):
                raise ValueError(f"guidance.{name}: a number is needed, not {getattr(self, name)}")

    def __call__(
        self, denoise: ConditionalDenoise, xt: Tensor, t: Tensor, conditioning: Conditioning, null: Conditioning
    ) -> Prediction:
        """The guided prediction at xt; `null` is the conditioning of the unconditional model."""
        if self.scale == 1 or not self.start <= t[0].item() <= self.stop:
            return denoise(xt, t, conditioning)
        both = denoise(torch.cat([xt, xt]), torch.cat([t, t]), conditioning.concatenate(null))
        (x0, x0_null), (noise, noise_null) = both.x0.chunk(2), both.noise.chunk(2)
        return Prediction(x0_null + self.scale * (x0 - x0_null), noise_null + self.scale * (noise - noise_null))
