"""The interface of autoencoders, the posterior that they give, and the statistics of their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldmlab.autoencoders.tiling import Tiles
from ldmlab.settings import is_whole, require


@dataclass(frozen=True)
class DiagonalGaussian:
    """A posterior q(z | image): mean and std, both (B, C, h, w)."""

    mean: Tensor
    std: Tensor

    @classmethod
    def certain(cls, latents: Tensor) -> DiagonalGaussian:
        """The posterior of an encoder without uncertainty: every draw is `latents` (B, C, h, w)."""
        return cls(latents, torch.zeros_like(latents))

    def sample(self, randn_like: Callable[[Tensor], Tensor] = torch.randn_like) -> Tensor:
        """A draw (B, C, h, w), differentiable in mean and std (Kingma and Welling 2013, section 2.4).

        `randn_like` supplies its noise, where that is to be the same every time.
        """
        return self.mean + self.std * randn_like(self.mean)

    def kl(self) -> Tensor:
        """KL(q || N(0, 1)) in nats of each latent value, (B, C, h, w) (Kingma and Welling 2013, appendix B)."""
        return 0.5 * (self.mean**2 + self.std**2 - 1 - 2 * self.std.log())


class Autoencoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, C, H / f, W / f) and back.

    The statistics of the latents per channel are measured after training (`measure_statistics`) and saved with the
    weights. Diffusion sees normalised latents only: mean 0 and deviation 1 in every channel.

    `trained_against` are the SHA-256 of the weights of frozen networks that a training loss asked for their opinion, a
    perceptual loss for instance. None of them may judge the result. `codes` is the number of different codes of a
    position, None where latents are continuous. `scaled` tells that mean and deviation came with the weights: measuring
    keeps them. `settings` is the configuration that builds this autoencoder again, without its weights. `tiles` are set
    by `tile`.
    """

    trained_against: tuple[str, ...] = ()
    codes: int | None = None
    scaled: bool = False
    settings: dict[str, Any] | None = None
    tiles: Tiles | None = None
    latent_mean: Tensor
    latent_std: Tensor
    latent_min: Tensor
    latent_max: Tensor

    def __init__(self, downsampling_factor: int, latent_channels: int):
        super().__init__()
        self.downsampling_factor = downsampling_factor
        self.latent_channels = latent_channels
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))
        self.register_buffer("latent_min", torch.full((latent_channels,), -torch.inf))
        self.register_buffer("latent_max", torch.full((latent_channels,), torch.inf))

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """The posterior of latents for images (B, 3, H, W) in [-1, 1]; H and W are divisible by f."""
        if self.tiles is None:
            return self.encode_whole(images)

        def moments(tile: Tensor) -> Tensor:
            posterior = self.encode_whole(tile)
            return torch.cat([posterior.mean, posterior.std], dim=1)

        mean, std = self.tiles(moments, images, before=self.downsampling_factor, after=1).chunk(2, dim=1)
        return DiagonalGaussian(mean, std)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) for raw latents (B, C, h, w)."""
        if self.tiles is None:
            return self.decode_whole(latents)
        return self.tiles(self.decode_whole, latents, before=1, after=self.downsampling_factor)

    def there_and_back(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] encoded and decoded without chance, in the same range."""
        return self.decode(self.encode(images).mean).clamp(-1, 1)

    def encode_whole(self, images: Tensor) -> DiagonalGaussian:
        """`encode`, in one piece: what an autoencoder implements."""
        raise NotImplementedError

    def decode_whole(self, latents: Tensor) -> Tensor:
        """`decode`, in one piece: what an autoencoder implements."""
        raise NotImplementedError

    def tile(self, pixels: int | None) -> None:
        """From now on, larger images go through in tiles of so many pixels a side, a multiple of f; None: in one piece.

        Neighbours share a quarter of a tile or more.

        Raises:
            SettingError: no tiles of that size are possible.
        """
        factor = self.downsampling_factor
        fits = pixels is None or (is_whole(pixels) and pixels >= 4 * factor and pixels % factor == 0)
        require(fits, "tile", f"null or a multiple of the factor, {4 * factor} or more,", pixels)
        self.tiles = None if pixels is None else Tiles(pixels // factor, pixels // factor // 4)

    def code_indices(self, latents: Tensor) -> Tensor:
        """The code (B, h, w) of each position of raw latents (B, C, h, w), from 0 to `codes` - 1."""
        raise NotImplementedError

    def normalize(self, latents: Tensor) -> Tensor:
        """Raw latents to the normalised ones that diffusion sees."""
        return (latents - self._per_channel(self.latent_mean)) / self._per_channel(self.latent_std)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Normalised latents to raw ones."""
        return latents * self._per_channel(self.latent_std) + self._per_channel(self.latent_mean)

    def normalized_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest normalised latent per channel seen in the data, both (1, C, 1, 1)."""
        return self.normalize(self._per_channel(self.latent_min)), self.normalize(self._per_channel(self.latent_max))

    @staticmethod
    def _per_channel(values: Tensor) -> Tensor:
        return values[None, :, None, None]

    @torch.no_grad()
    def measure_statistics(self, images: Iterable[Tensor]) -> None:
        """Sets mean, deviation, minimum and maximum per channel from batches of images (B, 3, H, W).

        Sums run in float64 over all batches: one batch is too few (the scale factor of latent diffusion's first
        release came from a single one). The deviation is that of drawn latents, so it includes the posterior's own.
        """
        count, low, high = 0, [], []
        total = squares = torch.zeros((), dtype=torch.float64)
        for batch in images:
            latents = self.encode(batch).sample().double().transpose(0, 1).flatten(1)
            count += latents.shape[1]
            total, squares = total + latents.sum(1), squares + (latents**2).sum(1)
            low.append(latents.amin(1))
            high.append(latents.amax(1))
        if not count:
            raise ValueError("latent statistics need at least one batch of images")
        mean = total / count
        variance = squares / count - mean**2
        if not self.scaled:
            self.latent_mean.copy_(mean)
            self.latent_std.copy_(variance.clamp(min=1e-12).sqrt())
        self.latent_min.copy_(torch.stack(low).amin(0))
        self.latent_max.copy_(torch.stack(high).amax(0))
