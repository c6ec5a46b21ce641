"""The latent diffusion model: autoencoder, conditioner, denoiser and path put together, to train and to sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ldmlab.autoencoders.base import Autoencoder, DiagonalGaussian
from ldmlab.conditioners.base import Conditioners, Drop
from ldmlab.diffusion.guidance import Guidance
from ldmlab.diffusion.likelihood import Bins
from ldmlab.diffusion.predictions import PREDICTIONS, Epsilon, Prediction, PredictionType
from ldmlab.diffusion.samplers import Denoise, PerSampleNoise, Sampler
from ldmlab.diffusion.schedules import Schedule, expand
from ldmlab.diffusion.times import TimeSampler
from ldmlab.diffusion.weightings import Weighting
from ldmlab.modules.sampling_modes import Blend, Start
from ldmlab.settings import SettingError, check_types, require
from ldmlab.types import Batch, Conditioning


@dataclass(frozen=True)
class Objective:
    """The four choices of a diffusion model: path, what is predicted, at which times, how the loss is weighted.

    `clip_x0`: whether predictions of x0 are clipped, while sampling, to the range of the (normalised) data, as DDPM
    does with pixels. An epsilon model needs it: near t = 1 an error of epsilon is divided by a tiny alpha.
    `learned_variance`: the network has as many outputs again, which say the variance of each step of the chain; they
    are trained by the variational bound, `bound_weight` times (Nichol and Dhariwal 2021, eq. 16).
    `learned_uncertainty`: the loss of each noise level is divided by what it is expected to be (Karras et al. 2024).
    """

    schedule: Schedule
    prediction: PredictionType
    times: TimeSampler
    weighting: Weighting
    clip_x0: bool = False
    learned_variance: bool = False
    bound_weight: float = 1e-3
    learned_uncertainty: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        known = {
            "prediction": isinstance(self.prediction, PredictionType),
            "times": callable(self.times),
            "weighting": callable(self.weighting),
        }
        for name, holds in known.items():
            require(holds, name, "a node with a _target_", getattr(self, name))
        if isinstance(self.prediction, Epsilon) and self.schedule.ends_in_noise:
            raise SettingError(
                "prediction: epsilon says nothing about x0 at the end of this path, where only noise is "
                "left; use v or velocity"
            )
        chain = self.schedule.chain
        if self.learned_variance and chain is None:
            raise SettingError(
                "learned_variance: the steps of a chain have variances, and this path is none; use "
                "scheduler=linear, scaled_linear, cosine or sigmoid"
            )
        steps = getattr(self.times, "steps", None)
        if steps is not None and steps > self.schedule.most_steps:
            raise SettingError(
                f"times: {steps} discrete times reach noise levels below the smallest of this path; "
                f"scheduler.times.steps={self.schedule.most_steps} or fewer do not"
            )
        own, other = (getattr(part, "sigma_data", None) for part in (self.weighting, self.prediction))
        if None not in (own, other) and own != other:
            raise SettingError(f"weighting.sigma_data: {own} here, {other} of the prediction; make them equal")
        if self.learned_variance and steps != chain:
            raise SettingError(
                "times: a learned variance is trained at the steps of the chain; use "
                "ldmlab.diffusion.times.Discrete or ImportanceSampled with as many steps"
            )

    @classmethod
    def from_names(
        cls, dimension: int, prediction: str | PredictionType, schedule: Schedule, **choices: Any
    ) -> Objective:
        """The objective as a config in `conf/scheduler` states it, for samples of `dimension` values.

        Raises:
            ValueError: there is no such prediction, or choices that do not fit together.
        """
        if isinstance(prediction, str):
            if prediction not in PREDICTIONS:
                raise SettingError(f'prediction: one of {", ".join(PREDICTIONS)} is needed, not "{prediction}"')
            prediction = PREDICTIONS[prediction]
        require(isinstance(schedule, Schedule), "schedule", "a node with a _target_", schedule)
        return cls(schedule.for_dimension(dimension), prediction, **choices)


class ConditionalDenoiser(nn.Module):
    """The trained part: conditioner and denoiser, which share one optimiser and one moving average."""

    def __init__(self, denoiser: nn.Module, conditioner: Conditioners):
        super().__init__()
        self.denoiser: Any = denoiser
        self.conditioner = conditioner


@dataclass
class Samples:
    """Images (B, 3, H, W) in [-1, 1], the latents (B, C, h, w) they were decoded from, and what they cost.

    `evaluations` counts passes through the network for each image: guidance pays twice a step.
    """

    images: Tensor
    latents: Tensor
    evaluations: float


class LatentDiffusion(nn.Module):
    """A conditional diffusion model in the latent space of a frozen autoencoder.

    Args:
        autoencoder: stage one; its weights are not trained here.
        network: the trained part.
        objective: path, prediction, times and weighting.
    """

    def __init__(self, autoencoder: Autoencoder, network: ConditionalDenoiser, objective: Objective):
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.network = network
        self.objective = objective

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Training mode for the network; the autoencoder stays frozen."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    @torch.no_grad()
    def draw_latents(self, batch: Batch) -> Tensor:
        """Normalised latents (B, C, h, w) of a batch: drawn anew from cached moments, or encoded from its images."""
        if "latent_mean" in batch:
            posterior = DiagonalGaussian(batch["latent_mean"].float(), batch["latent_std"].float())
        else:
            posterior = self.autoencoder.encode(batch["image"])
        return self.autoencoder.normalize(posterior.sample())

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1], without chance; in full precision always,

        as cached latents are."""
        with torch.autocast(images.device.type, enabled=False):
            return self.autoencoder.normalize(self.autoencoder.encode(images.float()).mean)

    def with_latents(self, network: ConditionalDenoiser, batch: Batch) -> Batch:
        """A batch with the latents of those of its images that the conditioner reads so."""
        return {**batch, **{f"{name}_latent": self.encode(batch[name]) for name in network.conditioner.encoded}}

    def condition(self, network: ConditionalDenoiser, batch: Batch, drop: Drop = None) -> Conditioning:
        """What `network` is told of a batch."""
        return network.conditioner(self.with_latents(network, batch), drop)

    def output(
        self,
        network: ConditionalDenoiser,
        xt: Tensor,
        t: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
    ) -> tuple[Tensor, Tensor | None]:
        """What `network` says at xt (B, C, h, w), times t (B,) and their coefficients (B,).

        Its output, and the variance if that is learned.

        The variance is the share of the way from the smallest to the largest that a step can have; the network's -1 to
        1 are 0 to 1, as in Nichol and Dhariwal's code, and it may leave that range.
        """
        scale = expand(self.objective.prediction.input_scale(alpha, sigma), xt)
        output = network.denoiser(scale * xt, t, conditioning).float()
        if not self.objective.learned_variance:
            return output, None
        output, variance = output.chunk(2, dim=1)
        return output, (variance + 1) / 2

    def denoise(self, network: ConditionalDenoiser, xt: Tensor, t: Tensor, conditioning: Conditioning) -> Prediction:
        """x0 and noise as `network` predicts them at normalised latents xt (B, C, h, w) and times t (B,)."""
        alpha, sigma = self.objective.schedule.coefficients(t)
        output, variance = self.output(network, xt, t, alpha, sigma, conditioning)
        return replace(self.objective.prediction.to_prediction(output, xt, alpha, sigma), variance=variance)

    def bins(self) -> Bins | None:
        """The cells of 8-bit images in normalised values, None for latents, which have no such cells."""
        if self.autoencoder.downsampling_factor > 1:
            return None
        device = self.autoencoder.latent_mean.device
        black = torch.full((1, self.autoencoder.latent_channels, 1, 1), -1.0, device=device)
        lowest, highest = self.autoencoder.normalize(black), self.autoencoder.normalize(-black)
        return Bins((highest - lowest) / (2 * 255), lowest, highest)

    def clip(self, prediction: Prediction, xt: Tensor, t: Tensor) -> Prediction:
        """The prediction with x0 in the range of the data, where the objective asks for it, and the noise to match."""
        if not self.objective.clip_x0:
            return prediction
        low, high = self.autoencoder.normalized_range()
        x0 = torch.minimum(torch.maximum(prediction.x0, low), high)
        return replace(self.with_x0(x0, xt, t), variance=prediction.variance)

    def with_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Prediction:
        """The prediction of which x0 is known; the noise is what is left of xt."""
        return Prediction.from_x0(x0, xt, *self.objective.schedule.coefficients(t))

    @torch.inference_mode()
    def sample(
        self,
        conditions: Batch,
        seeds: Sequence[int],
        latent_size: int | tuple[int, int],
        sampler: Sampler,
        guidance: Guidance,
        network: ConditionalDenoiser | None = None,
        start: Start | None = None,
        blend: Blend | None = None,
    ) -> Samples:
        """One image for each seed, under `conditions`, a batch without images.

        A picture depends on its seed, its condition and the weights only, not on the batch it was drawn in.
        `latent_size` is the latent's side, or its height and width; `network` replaces the trained one, by its moving
        average for instance. `start` begins with an image, and `blend` goes from one noise or condition to another.
        """
        network = network or self.network
        denoise = GuidedDenoiser(self, network, conditions, len(seeds), guidance, blend)
        randn_like = PerSampleNoise(seeds)
        size = (latent_size, latent_size) if isinstance(latent_size, int) else latent_size
        shape = (len(seeds), self.autoencoder.latent_channels, *size)
        noise = randn_like(torch.empty(shape, device=denoise.device))
        if blend is not None:
            noise = blend.noise(noise)
        asked: Denoise = denoise
        if start is not None:
            known = self.encode(start.images)
            sampler, noise = start.enter(sampler, known, noise, self.objective.schedule)
            asked = start.keeping(denoise, known, self.autoencoder.downsampling_factor, self.with_x0)
        latents = sampler(asked, noise, self.objective.schedule, randn_like)
        images = self.autoencoder.decode(self.autoencoder.denormalize(latents)).clamp(-1, 1)
        images = network.conditioner.finish(images, conditions)
        return Samples(images if start is None else start.finish(images), latents, denoise.rows / len(seeds))


class GuidedDenoiser:
    """What a sampler sees of the model: `denoise(xt, t)` for `count` samples under `conditions`, guided.

    `blend` may lead from these conditions to others. `rows` counts what went through the network, and the guide's:
    guidance sends two rows for each sample.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        network: ConditionalDenoiser,
        conditions: Batch,
        count: int,
        guidance: Guidance,
        blend: Blend | None = None,
    ):
        self.model, self.network, self.guidance, self.count = model, network, guidance, count
        self.device = next(network.parameters()).device
        self.blend = None if blend is None or blend.conditions is None else blend
        batches = [conditions] if self.blend is None else [conditions, self.blend.conditions or {}]
        self.batches = [model.with_latents(network, batch) for batch in batches]
        self.null = network.conditioner.null(self.batches[0], count, self.device)
        self.heard: dict[tuple[Any, ...], Conditioning] = {}
        self.rows = 0

    def __call__(self, xt: Tensor, t: Tensor) -> Prediction:
        """x0 and noise at xt (B, C, h, w), t (B,)."""
        # clipped after guidance, which leaves the range of what it is given
        return self.model.clip(self.guidance(self, xt, t), xt, t)

    def conditional(self, xt: Tensor, t: Tensor) -> Prediction:
        """The model's prediction under its conditions."""
        return self.without(frozenset(), xt, t)

    def both(self, xt: Tensor, t: Tensor, batched: bool) -> tuple[Prediction, Prediction]:
        """The conditional and the unconditional prediction, from one evaluation of 2B samples if `batched`."""
        if not batched or self.blend is not None:
            return self.conditional(xt, t), self._evaluate(xt, t, self.null)
        twice = self.told(frozenset(), 0).concatenate(self.null)
        both = self._evaluate(torch.cat([xt, xt]), torch.cat([t, t]), twice)
        parts = [(None, None) if part is None else part.chunk(2) for part in (both.x0, both.noise, both.variance)]
        told, null = (Prediction(*half) for half in zip(*parts, strict=True))
        return told, null

    def without(self, names: frozenset[str], xt: Tensor, t: Tensor) -> Prediction:
        """The prediction under all conditions but those of the conditioners `names`."""
        return self._blended(lambda batch: self._evaluate(xt, t, self.told(names, batch)))

    def weaker(self, guide: LatentDiffusion, xt: Tensor, t: Tensor) -> Prediction:
        """The prediction of `guide`, another model, under the same conditions."""

        def evaluate(batch: int) -> Prediction:
            self.rows += xt.shape[0]
            if ("guide", batch) not in self.heard:
                self.heard["guide", batch] = guide.network.conditioner(self.batches[batch])
            return guide.denoise(guide.network, xt, t, self.heard["guide", batch])

        return self._blended(evaluate)

    def with_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Prediction:
        """The prediction of which x0 is known."""
        return self.model.with_x0(x0, xt, t)

    def told(self, without: frozenset[str], batch: int) -> Conditioning:
        """What the network is told of a batch of conditions, by all conditioners but some; made once."""
        if (without, batch) not in self.heard:
            gone = torch.ones(self.count, dtype=torch.bool, device=self.device)
            drop = dict.fromkeys(without, gone)
            self.heard[without, batch] = self.network.conditioner(self.batches[batch], drop or None)
        return self.heard[without, batch]

    def _blended(self, evaluate: Callable[[int], Prediction]) -> Prediction:
        """The prediction under the conditions, or between those under two."""
        one = evaluate(0)
        return one if self.blend is None else self.blend.prediction(one, evaluate(1))

    def _evaluate(self, xt: Tensor, t: Tensor, told: Conditioning) -> Prediction:
        self.rows += xt.shape[0]
        return self.model.denoise(self.network, xt, t, told)
