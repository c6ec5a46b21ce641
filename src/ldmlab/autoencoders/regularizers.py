"""What keeps latents simple: a Gaussian posterior near the standard normal, or a code of few words.

A regularizer stands between encoder and decoder. With a code, the latents that diffusion sees are those before
quantisation, and the quantiser is the decoder's first layer (Rombach et al. 2022, section 3.1): what diffusion gets
slightly wrong is put right by the nearest code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ldmlab.autoencoders.base import DiagonalGaussian
from ldmlab.settings import is_number, is_whole, require, require_not_negative

LARGEST_MATRIX = 2**24  # distances from latents to codes at a time

LatentMove = Callable[[Tensor], Tensor]
"""What training does to latents (B, C, h, w) before they are decoded, see `equivariance`."""


def stay(latents: Tensor) -> Tensor:
    """No move."""
    return latents


class Regularized(NamedTuple):
    """Input of the decoder (B, C, h, w), what the loss adds for it, and values worth a log."""

    latents: Tensor
    penalty: Tensor
    values: dict[str, Tensor]


class Regularizer(nn.Module):
    """The interface. `outputs` is the number of encoder outputs for each latent channel.

    `codes` is the number of different codes, None where latents are continuous.
    """

    outputs = 1
    codes: int | None = None

    def posterior(self, features: Tensor) -> DiagonalGaussian:
        """The posterior of latents for encoder outputs (B, outputs · C, h, w); without chance unless overridden."""
        return DiagonalGaussian.certain(features)

    def decoder_input(self, latents: Tensor) -> Tensor:
        """What the decoder is given for latents (B, C, h, w)."""
        return latents

    def indices(self, latents: Tensor) -> Tensor:
        """The code (B, h, w) of each position, from 0 to `codes` - 1."""
        raise NotImplementedError

    def forward(self, posterior: DiagonalGaussian, pixel_values: int, move: LatentMove = stay) -> Regularized:
        """One training step's way from posterior to decoder.

        `pixel_values` is the number of values in the batch of images, by which penalties in nats are divided.
        """
        raise NotImplementedError


class KL(Regularizer):
    """Draws latents from a diagonal Gaussian posterior and penalises its KL divergence to the standard normal.

    Args:
        weight: of the KL in nats per pixel value, the unit in which a pixel loss is a mean: the balance of the two does
            not change with image size or downsampling factor. (The paper's 1e-6 weighs sums, which is the same.)
        free_bits: KL of a latent value that costs nothing, in bits, on average over a channel's values in the batch
            (Kingma et al. 2016, "free bits"): no channel gains by being switched off.
    """

    outputs = 2

    def __init__(self, weight: float, free_bits: float = 0.0):
        super().__init__()
        require_not_negative(weight=weight, free_bits=free_bits)
        self.weight, self.free_nats = weight, free_bits * math.log(2)

    def posterior(self, features: Tensor) -> DiagonalGaussian:
        """Mean and log-variance are the two halves of the channels."""
        # in float32: in bf16 the KL of a value near the prior, a difference of near numbers, would be rounding errors
        mean, log_variance = features.float().chunk(2, dim=1)
        return DiagonalGaussian(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def forward(self, posterior: DiagonalGaussian, pixel_values: int, move: LatentMove = stay) -> Regularized:
        """A draw, and the penalty."""
        latents = posterior.sample()
        per_channel = posterior.kl().mean((0, 2, 3))
        nats = per_channel.clamp(min=self.free_nats).sum() * (latents.numel() / latents.shape[1])
        return Regularized(move(latents), self.weight * nats / pixel_values, {"kl_per_latent": per_channel.mean()})


class VQ(Regularizer):
    """Vector quantisation: each position is replaced by the nearest of a learned list of codes.

    The gradient passes straight through (van den Oord et al. 2017, section 3.2). Codes follow the running means of the
    latents that chose them (appendix A.1); those that hardly anything chooses start again at a latent of the batch,
    which keeps the codebook in use (Dhariwal et al. 2020, section 3.1).

    Args:
        latent_channels: length of a code.
        codes: number of codes.
        commitment: weight of the mean squared distance by which latents are drawn to their codes.
        decay: of the running means, a step.
        restart_below: a code starts again when its running count falls below this share of the mean; 0: never.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    begun: Tensor

    def __init__(
        self,
        latent_channels: int,
        codes: int,
        commitment: float = 0.25,
        decay: float = 0.99,
        restart_below: float = 0.05,
    ):
        super().__init__()
        require(is_whole(codes) and codes > 1, "codes", "a whole number of 2 or more", codes)
        require_not_negative(commitment=commitment)
        for name, value in {"decay": decay, "restart_below": restart_below}.items():
            require(is_number(value) and 0 <= value < 1, name, "a number from 0 to less than 1", value)
        self.codes: int = codes
        self.commitment, self.decay, self.restart_below = commitment, decay, restart_below
        self.register_buffer("codebook", torch.randn(codes, latent_channels))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, latent_channels))
        self.register_buffer("begun", torch.tensor(False))

    def indices(self, latents: Tensor) -> Tensor:
        """The nearest code (B, h, w) of each position."""
        # |z - e|² without |z|², which is the same for all codes; in parts, as all distances at once may be gigabytes
        half_norms = 0.5 * self.codebook.square().sum(1)
        parts = _vectors(latents).split(max(1, LARGEST_MATRIX // self.codes))
        with torch.autocast(latents.device.type, enabled=False):
            nearest = torch.cat([torch.addmm(half_norms, part, self.codebook.T, alpha=-1).argmin(1) for part in parts])
        return nearest.view(latents.shape[0], *latents.shape[2:])

    def decoder_input(self, latents: Tensor) -> Tensor:
        """The nearest codes (B, C, h, w)."""
        return self._look_up(self.indices(latents)).to(latents.dtype)

    def _look_up(self, indices: Tensor) -> Tensor:
        return self.codebook[indices].movedim(-1, 1)

    def forward(self, posterior: DiagonalGaussian, pixel_values: int, move: LatentMove = stay) -> Regularized:
        """The nearest codes, the commitment, and how many codes are in use; in training the codebook follows."""
        latents = move(posterior.mean)
        if self.training and not self.begun:
            self._begin(latents)
        indices = self.indices(latents)
        codes = self._look_up(indices).to(latents.dtype)
        commitment = (latents - codes).square().mean()
        through = latents + (codes - latents).detach()
        if self.training:
            self._follow(latents, indices)
        values = {"commitment": commitment, **code_use(_counted(indices, self.codes))}
        return Regularized(through, self.commitment * commitment, values)

    @torch.no_grad()
    def _begin(self, latents: Tensor) -> None:
        """Starts every code at some latent of the first batch, with a little noise, as there may be fewer latents."""
        start = self._some(latents, self.codes)
        noise = torch.randn_like(start) * start.std(0, keepdim=True) * 0.1
        self.codebook.copy_(_from_first(start + noise))
        positions = torch.tensor(float(latents.numel() // latents.shape[1]), device=latents.device)
        _add_up(positions)
        self._trust(torch.ones_like(self.begun).expand(self.codes), float(positions) / self.codes)
        self.begun.fill_(True)

    @torch.no_grad()
    def _follow(self, latents: Tensor, indices: Tensor) -> None:
        """Running counts and sums of the latents that chose each code, and the codes from them."""
        chosen = indices.flatten()
        counts = _counted(chosen, self.codes)
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, _vectors(latents))
        for total in (counts, sums):
            _add_up(total)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        mean_count = counts.mean()
        self.codebook.copy_(self.sums / self.counts.clamp(min=1e-6)[:, None])
        dead = self.counts < self.restart_below * mean_count
        if dead.any():
            self.codebook.copy_(torch.where(dead[:, None], _from_first(self._some(latents, self.codes)), self.codebook))
            self._trust(dead, float(mean_count))

    def _trust(self, which: Tensor, count: float) -> None:
        """Gives codes that start the running count of an average code, so that they have time to be chosen."""
        self.counts.masked_fill_(which, count)
        self.sums.copy_(torch.where(which[:, None], self.codebook * count, self.sums))

    def _some(self, latents: Tensor, count: int) -> Tensor:
        """Latents (count, C) of the batch at random, each only once if there are enough."""
        vectors = _vectors(latents)
        order = torch.randperm(len(vectors), device=vectors.device)
        return vectors[order.repeat(-(-count // len(vectors)))[:count]]


class FSQ(Regularizer):
    """Finite scalar quantisation (Mentzer et al. 2023): each channel is rounded to one of a few levels in [-1, 1].

    No codebook, so nothing to learn, to collapse or to weigh; the gradient passes straight through the rounding.

    Args:
        levels: the number of levels of each latent channel; 3 or more; their product is the number of codes.
    """

    def __init__(self, latent_channels: int, levels: Sequence[int]):
        super().__init__()
        fits = isinstance(levels, Sequence) and all(is_whole(level) and level > 2 for level in levels)
        require(fits and len(levels) == latent_channels, "levels", f"{latent_channels} whole numbers above 2", levels)
        self.codes: int = math.prod(levels)
        levels_tensor = torch.tensor(levels)
        self.register_buffer("half_width", levels_tensor // 2, persistent=False)
        # an even number of levels lies off centre by half a step, so that 0 is among them
        self.register_buffer("offset", torch.where(levels_tensor % 2 == 0, 0.5, 0.0), persistent=False)
        self.register_buffer("reach", (levels_tensor - 1) / 2 * (1 - 1e-3), persistent=False)
        places = torch.cat([torch.ones(1, dtype=torch.long), levels_tensor[:-1].cumprod(0)])
        self.register_buffer("places", places, persistent=False)

    half_width: Tensor
    offset: Tensor
    reach: Tensor
    places: Tensor

    def posterior(self, features: Tensor) -> DiagonalGaussian:
        """Features within reach of the levels, not rounded: what diffusion learns (eq. 1 and appendix A.1)."""
        reach, offset, half = (_per_channel(part) for part in (self.reach, self.offset, self.half_width))
        bounded = (features + torch.atanh(offset / reach)).tanh() * reach - offset
        return super().posterior(bounded / half)

    def _level(self, latents: Tensor) -> Tensor:
        """The nearest level of each channel as a whole number, 0 in the middle; latents out of reach get the last."""
        half = _per_channel(self.half_width)
        even = _per_channel(self.offset > 0).long()
        level = (latents * half).round()
        return torch.maximum(torch.minimum(level, half - even), -half)

    def decoder_input(self, latents: Tensor) -> Tensor:
        """The nearest levels, (B, C, h, w)."""
        return (self._level(latents) / _per_channel(self.half_width)).to(latents.dtype)

    def indices(self, latents: Tensor) -> Tensor:
        """The code (B, h, w): the levels of all channels as digits of one number."""
        digits = (self._level(latents) + _per_channel(self.half_width)).long()
        return (digits * _per_channel(self.places)).sum(1)

    def forward(self, posterior: DiagonalGaussian, pixel_values: int, move: LatentMove = stay) -> Regularized:
        """The nearest levels, and how many codes are in use."""
        latents = move(posterior.mean)
        through = latents + (self.decoder_input(latents) - latents).detach()
        return Regularized(
            through, latents.new_zeros(()), code_use(_counted(self.indices(latents.detach()), self.codes))
        )


def _counted(indices: Tensor, codes: int) -> Tensor:
    """How often each of the codes (K,) is among indices."""
    chosen = indices.flatten()
    # unlike bincount of a size that is known beforehand
    return torch.zeros(codes, device=chosen.device).index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float))


def code_use(counts: Tensor) -> dict[str, Tensor]:
    """How evenly codes are used that were chosen `counts` (K,) times.

    `codebook_perplexity`, the exponential of the entropy, is K for even use and 1 for a single code;
    `codebook_usage` is the share of codes chosen at all.
    """
    shares = counts / counts.sum()
    perplexity = torch.special.entr(shares).sum().exp()
    return {"codebook_perplexity": perplexity, "codebook_usage": (counts > 0).float().mean()}


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _vectors(latents: Tensor) -> Tensor:
    """(B, C, h, w) as (B · h · w, C) in float32."""
    return latents.detach().float().movedim(1, -1).flatten(0, -2)


def _add_up(tensor: Tensor) -> None:
    """The sum over all processes, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)


def _from_first(tensor: Tensor) -> Tensor:
    """The first process's, for all."""
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(tensor, 0)
    return tensor
