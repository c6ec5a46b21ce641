"""The latent diffusion model: autoencoder, conditioner, denoiser and path put together, to train and to sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldmlab.autoencoders.base import Autoencoder, DiagonalGaussian
from ldmlab.conditioners.base import Conditioner
from ldmlab.diffusion.guidance import Guidance
from ldmlab.diffusion.predictions import PREDICTIONS, Prediction, PredictionType
from ldmlab.diffusion.samplers import PerSampleNoise, Sampler
from ldmlab.diffusion.schedules import Schedule, add_noise, expand
from ldmlab.diffusion.times import TimeSampler
from ldmlab.diffusion.weightings import Weighting
from ldmlab.types import Batch, Conditioning


@dataclass(frozen=True)
class Objective:
    """The four choices of a diffusion model: path, what is predicted, at which times, how the loss is weighted.

    `clip_x0`: whether predictions of x0 are clipped, while sampling, to the range of the (normalised) data, as DDPM
    does with pixels. An epsilon model needs it: near t = 1 an error of epsilon is divided by a tiny alpha.
    """

    schedule: Schedule
    prediction: PredictionType
    times: TimeSampler
    weighting: Weighting
    clip_x0: bool = False

    @classmethod
    def from_names(
        cls,
        schedule: Schedule,
        prediction: str,
        times: TimeSampler,
        weighting: Weighting,
        clip_x0: bool = False,
    ) -> Objective:
        """The objective as a config in `conf/scheduler` states it; raises ValueError for an unknown prediction."""
        if prediction not in PREDICTIONS:
            raise ValueError(f'scheduler.prediction is one of {", ".join(PREDICTIONS)}, not "{prediction}"')
        alpha, _ = schedule.coefficients(torch.ones(1))
        if prediction == "epsilon" and alpha.item() == 0:
            raise ValueError(
                "scheduler.prediction: epsilon says nothing about x0 at the end of this path, where only noise is "
                "left; use v or velocity"
            )
        return cls(schedule, PREDICTIONS[prediction], times, weighting, clip_x0)


class ConditionalDenoiser(nn.Module):
    """The trained part: conditioner and denoiser, which share one optimiser and one moving average."""

    def __init__(self, denoiser: nn.Module, conditioner: Conditioner):
        super().__init__()
        self.denoiser = denoiser
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
        drop_probability: share of training samples that are not told their condition, for classifier-free guidance.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        network: ConditionalDenoiser,
        objective: Objective,
        drop_probability: float = 0.1,
    ):
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.network = network
        self.objective = objective
        self.drop_probability = drop_probability

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

    def loss(self, batch: Batch) -> Tensor:
        """The weighted squared error of the network's output for each sample, (B,)."""
        x0 = self.draw_latents(batch)
        batch_size, device = x0.shape[0], x0.device
        t = self.objective.times(batch_size, device)
        noise = torch.randn_like(x0)
        alpha, sigma = self.objective.schedule.coefficients(t)
        xt = add_noise(self.objective.schedule, x0, noise, t)

        drop = torch.rand(batch_size, device=device) < self.drop_probability
        conditioning = self.network.conditioner(batch, drop)
        output = self.network.denoiser(xt, t, conditioning)

        target = self.objective.prediction.target(x0, noise, alpha, sigma)
        weight = self.objective.weighting(alpha, sigma, self.objective.prediction)
        return weight * (output - target).square().flatten(1).mean(1)

    def denoise(self, network: ConditionalDenoiser, xt: Tensor, t: Tensor, conditioning: Conditioning) -> Prediction:
        """x0 and noise as `network` predicts them at normalised latents xt (B, C, h, w) and times t (B,)."""
        alpha, sigma = self.objective.schedule.coefficients(t)
        output = network.denoiser(xt, t, conditioning).float()
        return self.objective.prediction.to_prediction(output, xt, alpha, sigma)

    def clip(self, prediction: Prediction, xt: Tensor, t: Tensor) -> Prediction:
        """The prediction with x0 in the range of the data, where the objective asks for it, and the noise to match."""
        if not self.objective.clip_x0:
            return prediction
        alpha, sigma = self.objective.schedule.coefficients(t)
        low, high = self.autoencoder.normalized_range()
        x0 = torch.minimum(torch.maximum(prediction.x0, low), high)
        return Prediction(x0, (xt - expand(alpha, xt) * x0) / expand(sigma, xt))

    @torch.inference_mode()
    def sample(
        self,
        conditions: Batch,
        seeds: Sequence[int],
        latent_size: int,
        sampler: Sampler,
        guidance: Guidance,
        network: ConditionalDenoiser | None = None,
    ) -> Samples:
        """One image for each seed, under `conditions`, a batch without images.

        A picture depends on its seed, its condition and the weights only, not on the batch it was drawn in.
        `latent_size` is the latent's side; `network` replaces the trained one, by its moving average for instance.
        """
        network = network or self.network
        denoise = GuidedDenoiser(self, network, conditions, len(seeds), guidance)
        randn_like = PerSampleNoise(seeds)
        shape = (len(seeds), self.autoencoder.latent_channels, latent_size, latent_size)
        noise = randn_like(torch.empty(shape, device=denoise.device))
        latents = sampler(denoise, noise, self.objective.schedule, randn_like)
        images = self.autoencoder.decode(self.autoencoder.denormalize(latents)).clamp(-1, 1)
        return Samples(images, latents, denoise.rows / len(seeds))


class GuidedDenoiser:
    """What a sampler sees of the model: `denoise(xt, t)` for `count` samples under `conditions`, guided.

    `rows` counts what went through the network: guidance sends two rows for each sample.
    """

    def __init__(
        self, model: LatentDiffusion, network: ConditionalDenoiser, conditions: Batch, count: int, guidance: Guidance
    ):
        self.model, self.network, self.guidance = model, network, guidance
        self.device = next(network.parameters()).device
        self.conditioning = network.conditioner(conditions)
        self.null = network.conditioner.null(count, self.device)
        self.rows = 0

    def __call__(self, xt: Tensor, t: Tensor) -> Prediction:
        """x0 and noise at xt (B, C, h, w), t (B,)."""
        # clipped after guidance, which leaves the range of what it is given
        return self.model.clip(self.guidance(self._evaluate, xt, t, self.conditioning, self.null), xt, t)

    def _evaluate(self, xt: Tensor, t: Tensor, told: Conditioning) -> Prediction:
        self.rows += xt.shape[0]
        return self.model.denoise(self.network, xt, t, told)
