"""Ways to sample that need no training of their own: from an image, within a mask, between two noises or conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmlab.diffusion.grids import Grid, grid_named
from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.samplers import Denoise, PerSampleNoise, Sampler
from ldmlab.diffusion.schedules import Schedule, add_noise
from ldmlab.types import Batch


@dataclass(frozen=True)
class Below:
    """The times of another grid, brought below `strength`: as many, the first of them `strength` itself."""

    grid: Grid
    strength: float

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times in [0, 1], float64, the last of them 0."""
        times = self.grid(steps, schedule)
        return times * (self.strength / times[0])


@dataclass(frozen=True)
class Start:
    """Sampling that begins with images (B, 3, H, W) in [-1, 1].

    `strength`: the time at which they enter, with noise to match: near 0 little of them changes, at 1 nothing is left
    of them (SDEdit; Meng et al. 2022). `mask` bool (B, 1, H, W): True where there is something to paint; elsewhere the
    images stay as they are, since in every step the prediction is replaced by them there (after Lugmayr et al. 2022,
    without their jumps back).
    """

    images: Tensor
    strength: float = 1.0
    mask: Tensor | None = None

    def enter(self, sampler: Sampler, known: Tensor, noise: Tensor, schedule: Schedule) -> tuple[Sampler, Tensor]:
        """The sampler of what is left of the path, and the noise that it has to be given to begin at the images.

        `known` are the images' normalised latents (B, C, h, w), `noise` is standard normal.
        """
        if self.strength >= 1:
            return sampler, noise
        sampler = replace(sampler, grid=Below(grid_named(sampler.grid, schedule), self.strength))
        first = sampler.points(schedule)[0]
        noisy = add_noise(schedule, known, noise, first.batch_time(known))
        return sampler, noisy / math.hypot(first.alpha, first.sigma)  # samplers multiply by this

    def keeping(
        self, denoise: Denoise, known: Tensor, factor: int, with_x0: Callable[[Tensor, Tensor, Tensor], Prediction]
    ) -> Denoise:
        """The same denoiser, sure of what is known outside of the mask. `with_x0(x0, xt, t)` completes a prediction."""
        if self.mask is None:
            return denoise
        # a latent that holds something to paint is painted as a whole
        painted = F.max_pool2d(self.mask.to(known), factor) > 0

        def kept(xt: Tensor, t: Tensor) -> Prediction:
            prediction = denoise(xt, t)
            x0 = torch.where(painted, prediction.x0, known)
            return replace(with_x0(x0, xt, t), variance=prediction.variance)

        return kept

    def finish(self, images: Tensor) -> Tensor:
        """Sampled images within the mask, the images that sampling began with elsewhere."""
        return images if self.mask is None else torch.where(self.mask, images, self.images)


def rows_of(conditions: Batch, start: int, stop: int) -> Batch:
    """Some of the images that conditions are for."""
    return {key: value[start:stop] for key, value in conditions.items()}


@dataclass(frozen=True)
class Blend:
    """A way from one noise or condition to another, in as many images as there are `weights` (B,), 0 to 1.

    `seeds`: from the noise of one seed to that of another, on the great circle, which keeps their length.
    `conditions`: towards these, a batch as large; the predictions under both are mixed, which works for conditions of
    any kind.
    """

    weights: Tensor
    seeds: tuple[int, int] | None = None
    conditions: Batch | None = None

    def rows(self, start: int, stop: int) -> Blend:
        """A part of the way."""
        conditions = None if self.conditions is None else rows_of(self.conditions, start, stop)
        return replace(self, weights=self.weights[start:stop], conditions=conditions)

    def noise(self, noise: Tensor) -> Tensor:
        """The noise (B, C, h, w) of each image."""
        if self.seeds is None:
            return noise
        first, last = PerSampleNoise(self.seeds)(noise[:1].expand(2, *noise.shape[1:]))
        angle = torch.acos(torch.dot(first.flatten(), last.flatten()) / (first.norm() * last.norm()))
        weight = self.weights.to(noise)[:, None, None, None]
        return (((1 - weight) * angle).sin() * first + (weight * angle).sin() * last) / angle.sin()

    def prediction(self, one: Prediction, other: Prediction) -> Prediction:
        """Between the predictions under both conditions."""
        weight = self.weights.to(one.x0)[:, None, None, None]
        return Prediction(one.x0.lerp(other.x0, weight), one.noise.lerp(other.noise, weight), one.variance)
