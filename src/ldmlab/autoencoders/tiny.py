"""The tiny autoencoder that previews Stable Diffusion's latents (TAESD, Ollin Boer Bohan 2023), to load its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.autoencoders.base import Autoencoder, DiagonalGaussian
from ldmlab.settings import SettingError

LATENT_MAGNITUDE = 3  # latents beyond it are squashed before decoding


# Names and order of layers are those of the published weights.
class TinyBlock(nn.Module):
    """Three convolutions with a residual, and no norms: (B, C, h, w) to the same."""

    def __init__(self, channels: int):
        super().__init__()
        first, second, third = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w)."""
        return F.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, C, H / f, W / f)."""

    def __init__(self, latent_channels: int, channels: Sequence[int], blocks: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1)]
        for level, width in enumerate(channels):
            if level:
                layers.append(nn.Conv2d(channels[level - 1], width, 3, stride=2, padding=1, bias=False))
            layers += [TinyBlock(width) for _ in range(blocks[level])]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], latent_channels, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, C, H / f, W / f)."""
        return self.layers((images + 1) / 2)


class TinyDecoder(nn.Module):
    """Latents (B, C, h, w) to images (B, 3, h · f, w · f)."""

    def __init__(self, latent_channels: int, channels: Sequence[int], blocks: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(latent_channels, channels[0], 3, padding=1), nn.ReLU()]
        for level, width in enumerate(channels):
            layers += [TinyBlock(width) for _ in range(blocks[level])]
            if level < len(channels) - 1:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, channels[level + 1], 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 3, 3, padding=1))

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, 3, h · f, w · f), about in [-1, 1]."""
        return self.layers(torch.tanh(latents / LATENT_MAGNITUDE) * LATENT_MAGNITUDE) * 2 - 1


class TinyAutoencoder(Autoencoder):
    """Encoder and decoder of few, equally wide layers, whose latents are those of a larger autoencoder.

    Args:
        downsampling_factor: f, which is 2^(levels - 1).
        latent_channels: channels C of the latent.
        encoder_channels, encoder_blocks: width and number of blocks of each level, from the image on.
        decoder_channels, decoder_blocks: the same, from the latent on.

    Raises:
        SettingError: levels and factor do not fit together.
    """

    def __init__(
        self,
        downsampling_factor: int,
        latent_channels: int,
        encoder_channels: Sequence[int],
        encoder_blocks: Sequence[int],
        decoder_channels: Sequence[int],
        decoder_blocks: Sequence[int],
    ):
        super().__init__(downsampling_factor, latent_channels)
        levels = {len(part) for part in (encoder_channels, encoder_blocks, decoder_channels, decoder_blocks)}
        if {2 ** (count - 1) for count in levels} != {downsampling_factor}:
            raise SettingError(
                f"encoder_channels: lists of equal length are needed, for a factor {downsampling_factor}"
            )
        self.encoder = TinyEncoder(latent_channels, encoder_channels, encoder_blocks)
        self.decoder = TinyDecoder(latent_channels, decoder_channels, decoder_blocks)

    def encode_whole(self, images: Tensor) -> DiagonalGaussian:
        """Latents of images (B, 3, H, W) in [-1, 1], without uncertainty."""
        return DiagonalGaussian.certain(self.encoder(images))

    def decode_whole(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) for raw latents (B, C, h, w)."""
        return self.decoder(latents)
