"""The convolutional autoencoder with a Gaussian posterior (Rombach et al. 2022, section 3.1 and appendix G)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.autoencoders.base import Autoencoder, DiagonalGaussian
from ldmlab.settings import SettingError


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(channels // 16, 1), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with a residual: (B, in, h, w) to (B, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = _group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Encoder(nn.Sequential):
    """Images (B, 3, H, W) to features (B, out, H / f, W / f), f = patch_size · 2^(levels - 1)."""

    def __init__(self, out_channels: int, widths: Sequence[int], blocks: int, patch_size: int):
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch_size),
            nn.Conv2d(3 * patch_size**2, widths[0], 3, padding=1),
        ]
        for level, width in enumerate(widths):
            if level:
                layers.append(nn.Conv2d(widths[level - 1], width, 4, stride=2, padding=1))
            layers += [ResidualBlock(width, width) for _ in range(blocks)]
        layers += [_group_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], out_channels, 3, padding=1)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Latents (B, C, h, w) to images (B, 3, h · f, w · f), the encoder's mirror image."""

    def __init__(self, in_channels: int, widths: Sequence[int], blocks: int, patch_size: int):
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[-1], 3, padding=1)]
        for level in reversed(range(len(widths))):
            layers += [ResidualBlock(widths[level], widths[level]) for _ in range(blocks)]
            if level:
                # sub-pixel convolution: as many parameters where the map is small as a transposed one, no checkerboard
                layers += [nn.Conv2d(widths[level], 4 * widths[level - 1], 3, padding=1), nn.PixelShuffle(2)]
        layers += [
            _group_norm(widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], 3 * patch_size**2, 3, padding=1),
            nn.PixelShuffle(patch_size),
        ]
        super().__init__(*layers)


class KLAutoencoder(Autoencoder):
    """Convolutional encoder and decoder around a diagonal Gaussian posterior.

    Args:
        downsampling_factor: f, a power of two; the latent's side is the image's divided by it.
        latent_channels: channels C of the latent.
        channels: width of the first level.
        channel_multipliers: width of each level in units of `channels`; each level after the first halves the size.
        patch_size: pixels enter as patches of this size, folded into channels, and leave the same way. It is
            determined by the other two: f / 2^(levels - 1). 1 is the paper's, larger ones save much of the time.
        encoder_blocks, decoder_blocks: residual blocks a level.
    """

    def __init__(
        self,
        downsampling_factor: int,
        latent_channels: int,
        channels: int = 32,
        channel_multipliers: Sequence[int] = (1, 2),
        encoder_blocks: int = 1,
        decoder_blocks: int = 1,
    ):
        super().__init__(downsampling_factor, latent_channels)
        halvings = 2 ** (len(channel_multipliers) - 1)
        if downsampling_factor % halvings:
            raise SettingError(
                f"channel_multipliers: {len(channel_multipliers)} levels downsample by at least "
                f"{halvings}, more than the factor {downsampling_factor}"
            )
        patch_size = downsampling_factor // halvings
        widths = [channels * multiplier for multiplier in channel_multipliers]
        self.encoder = Encoder(2 * latent_channels, widths, encoder_blocks, patch_size)
        self.decoder = Decoder(latent_channels, widths, decoder_blocks, patch_size)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """The posterior of latents for images (B, 3, H, W) in [-1, 1]; H and W are divisible by f."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return DiagonalGaussian(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) for raw latents (B, C, h, w)."""
        return self.decoder(latents)
