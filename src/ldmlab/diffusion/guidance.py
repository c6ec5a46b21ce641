"""Guidance: how the conditional prediction and a worse one are combined, in the sampler and for all channels.

All of them extrapolate x0 and noise alike, which together give xt again, so a guidance works with any prediction type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldmlab.diffusion.predictions import Prediction
from ldmlab.settings import SettingError, check_types, is_number, require


class Guidable(Protocol):
    """A conditional model and what it can be guided by. All take xt (B, ...) and t (B,)."""

    def conditional(self, xt: Tensor, t: Tensor) -> Prediction:
        """The model's prediction under its conditions."""
        ...

    def both(self, xt: Tensor, t: Tensor, batched: bool) -> tuple[Prediction, Prediction]:
        """The conditional and the unconditional prediction, from one evaluation of 2B samples if `batched`."""
        ...

    def without(self, names: frozenset[str], xt: Tensor, t: Tensor) -> Prediction:
        """The prediction under all conditions but those of the conditioners `names`."""
        ...

    def weaker(self, guide: Any, xt: Tensor, t: Tensor) -> Prediction:
        """The prediction of `guide`, another model, under the same conditions."""
        ...

    def with_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Prediction:
        """The prediction of which x0 is known."""
        ...


class Guidance(Protocol):
    """A way to evaluate a conditional model."""

    def __call__(self, model: Guidable, xt: Tensor, t: Tensor) -> Prediction:
        """The guided prediction at xt (B, ...), t (B,)."""
        ...


@dataclass(frozen=True)
class NoGuidance:
    """The conditional model as it is."""

    def __call__(self, model: Guidable, xt: Tensor, t: Tensor) -> Prediction:
        """The guided prediction at xt (B, ...), t (B,)."""
        return model.conditional(xt, t)


ROUNDING = 1e-6
"""How far a time in float32 may be from what was meant."""


@dataclass(frozen=True)
class _Extrapolation:
    """worse + scale · (conditional - worse) for t within [`start`, `stop`]; outside, the conditional model alone."""

    scale: float = 2.0
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        require(math.isfinite(self.scale), "scale", "a finite number", self.scale)

    def acts(self, t: Tensor) -> bool:
        """Whether a second evaluation is paid at times t (B,), all equal."""
        now = min(t[0].item(), 1.0)  # churn may lead beyond the end of the path, where guidance is that of its end
        return self.scale != 1 and self.start - ROUNDING <= now <= self.stop + ROUNDING

    def extrapolate(self, good: Prediction, worse: Prediction) -> Prediction:
        """From the worse prediction through the good one; variance, if learned, is the good one's."""
        x0 = worse.x0 + self.scale * (good.x0 - worse.x0)
        return Prediction(x0, worse.noise + self.scale * (good.noise - worse.noise), good.variance)


@dataclass(frozen=True)
class ClassifierFree(_Extrapolation):
    """unconditional + scale · (conditional - unconditional) (Ho and Salimans 2022, eq. 6, with scale = 1 + w).

    Scale 1 is the conditional model and costs one evaluation. Guidance acts for t within [`start`, `stop`] only
    (Kynkäänniemi et al. 2024, whose levels sigma are other times on every path); outside, the second evaluation is not
    paid. `rescale` above 0 brings x0 back to the
    spread that it has without guidance, by that share (Lin et al. 2023, section 3.4), against overexposure at high
    scales. `batched`: both evaluations in one pass of twice the batch, or one after the other in less memory.
    """

    rescale: float = 0.0
    batched: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.rescale <= 1, "rescale", "a number from 0 to 1", self.rescale)

    def __call__(self, model: Guidable, xt: Tensor, t: Tensor) -> Prediction:
        """The guided prediction at xt (B, ...), t (B,)."""
        if not self.acts(t):
            return model.conditional(xt, t)
        conditional, unconditional = model.both(xt, t, self.batched)
        guided = self.extrapolate(conditional, unconditional)
        if self.rescale == 0:
            return guided
        ratio = spread(conditional.x0) / spread(guided.x0).clamp(min=1e-8)
        x0 = guided.x0 * (self.rescale * ratio + 1 - self.rescale)  # eq. 15 and 16
        return Prediction(x0, model.with_x0(x0, xt, t).noise, guided.variance)


@dataclass(frozen=True)
class Composition:
    """base + sum of scale_i · (base told i - base), for several conditions with a scale each (Liu et al. 2022, eq. 11).

    `scales` names conditioners; the base is told everything but those. With all of a model's conditioners that is the
    unconditional model, with `text` alone of text and super-resolution it still sees the small image. One evaluation
    a step for the base and one for each scale.
    """

    scales: dict[str, float]

    def __post_init__(self) -> None:
        given = isinstance(self.scales, dict) and len(self.scales) > 0
        require(given, "scales", "a scale for each conditioner, {text: 4, class: 2},", self.scales)
        for name, scale in self.scales.items():
            require(is_number(scale) and math.isfinite(scale), f"scales.{name}", "a finite number", scale)

    def __call__(self, model: Guidable, xt: Tensor, t: Tensor) -> Prediction:
        """The guided prediction at xt (B, ...), t (B,)."""
        names = frozenset(self.scales)
        base = model.without(names, xt, t)
        x0, noise = base.x0, base.noise
        variances: list[Tensor] = []
        for name, scale in self.scales.items():
            told = model.without(names - {name}, xt, t)
            x0, noise = x0 + scale * (told.x0 - base.x0), noise + scale * (told.noise - base.noise)
            variances += [] if told.variance is None else [told.variance]
        return Prediction(x0, noise, torch.stack(variances).mean(0) if variances else None)


def spread(x: Tensor) -> Tensor:
    """The standard deviation of each sample of a batch (B, ...), shaped (B, 1, ..., 1)."""
    return x.flatten(1).std(1).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Autoguidance(_Extrapolation):
    """guide + scale · (model - guide), the guide being a weaker version of the model (Karras et al. 2024b, eq. 3).

    `guide` is a model with the same latents and path, smaller or trained for less long; a config names its run. Needs
    no conditions to be left out, and so serves unconditional models too. Costs an evaluation of the guide.
    """

    guide: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guide is None:
            raise SettingError("guide: the folder of a weaker run is needed, guidance.guide=runs/STUDY/NAME")

    def __call__(self, model: Guidable, xt: Tensor, t: Tensor) -> Prediction:
        """The guided prediction at xt (B, ...), t (B,)."""
        good = model.conditional(xt, t)
        return self.extrapolate(good, model.weaker(self.guide, xt, t)) if self.acts(t) else good
