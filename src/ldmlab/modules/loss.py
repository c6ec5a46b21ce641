"""What the network of a latent diffusion model is trained to make small."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldmlab.conditioners.base import draw_drop
from ldmlab.diffusion.likelihood import Bins, step_term
from ldmlab.diffusion.schedules import add_noise
from ldmlab.diffusion.times import ImportanceSampled
from ldmlab.diffusion.uncertainty import LearnedUncertainty
from ldmlab.modules.model import LatentDiffusion, Objective
from ldmlab.types import Batch


class Losses(NamedTuple):
    """The loss of each sample, (B,): what is minimised, and without the learned uncertainty, to compare runs by."""

    minimised: Tensor
    plain: Tensor


class DiffusionLoss(nn.Module):
    """The weighted squared error of the network's output at random times, as the model's objective says.

    A module, as some of it belongs into checkpoints though not into the model: the learned uncertainty of each noise
    level, and the losses that importance-sampled times are drawn by.

    Args:
        objective: the model's.
        drop_probability: share of training samples that are told nothing, for classifier-free guidance.
        drop_each_probability: where there are several conditions, how often each is missing in the others.
    """

    def __init__(self, objective: Objective, drop_probability: float = 0.1, drop_each_probability: float = 0.1):
        super().__init__()
        self.objective = objective
        self.drop_probability, self.drop_each_probability = drop_probability, drop_each_probability
        self.importance = objective.times if isinstance(objective.times, ImportanceSampled) else None
        self.uncertainty = LearnedUncertainty() if objective.learned_uncertainty else None

    def forward(self, model: LatentDiffusion, batch: Batch) -> Losses:
        """The loss of each sample."""
        objective, schedule = self.objective, self.objective.schedule
        x0 = model.draw_latents(batch)
        batch_size, device = x0.shape[0], x0.device
        t = objective.times(batch_size, schedule, device)
        noise = torch.randn_like(x0)
        alpha, sigma = schedule.coefficients(t)
        xt = add_noise(schedule, x0, noise, t)

        conditioner = model.network.conditioner
        drop = draw_drop(
            list(conditioner.named_parts), batch_size, self.drop_probability, self.drop_each_probability, device
        )
        conditioning = model.condition(model.network, {**batch, **conditioner.tell(batch)}, drop)
        output, variance = model.output(model.network, xt, t, alpha, sigma, conditioning)

        target = objective.prediction.target(x0, noise, alpha, sigma)
        weight = objective.weighting(t, schedule, objective.prediction)
        loss = weight * (output - target).square().flatten(1).mean(1)
        if variance is not None:
            loss = loss + self.bound(x0, xt, output, variance, t, model.bins())
        minimised = loss if self.uncertainty is None else self.uncertainty(loss, alpha, sigma)
        if self.importance is None:
            return Losses(minimised, loss)
        # outside of the uncertainty, which would learn the weights and divide them out again
        importance = self.importance.weight(t)
        if self.training:
            self.importance.update(t, loss)
        return Losses(importance * minimised, importance * loss)

    def bound(self, x0: Tensor, xt: Tensor, output: Tensor, variance: Tensor, t: Tensor, bins: Bins | None) -> Tensor:
        """The part of the loss (B,) that teaches the variance, and nothing else (Nichol and Dhariwal 2021, eq. 16).

        The bound in bits a dimension times `bound_weight`: a term at random times a number of steps is its estimate.
        """
        schedule, steps = self.objective.schedule, self.objective.schedule.chain
        assert steps is not None
        alpha, sigma = schedule.coefficients(t)
        prediction = replace(
            self.objective.prediction.to_prediction(output.detach(), xt, alpha, sigma), variance=variance
        )
        term = step_term(x0, xt, prediction, t, schedule, steps, "learned", bins)
        return self.objective.bound_weight * steps * term
