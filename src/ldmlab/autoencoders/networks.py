"""Encoders and decoders: the small ones of the lab, and those of latent diffusion's paper.

Every encoder maps images (B, 3, H, W) to features (B, out_channels, H / f, W / f), every decoder latents
(B, in_channels, h, w) to images (B, 3, h · f, w · f).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # of every group norm, as in the paper's code


def _small_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(channels // 16, 1), channels, eps=EPSILON)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with a residual: (B, in, h, w) to (B, out, h, w).

    `groups` of the norms; None: one for every 16 channels.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int | None = None):
        super().__init__()
        norm1, norm2 = (
            _small_norm(channels) if groups is None else nn.GroupNorm(groups, channels, eps=EPSILON)
            for channels in (in_channels, out_channels)
        )
        self.norm1 = norm1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm2
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class SmallEncoder(nn.Sequential):
    """Patches of pixels, then levels of residual blocks, each after the first at half the size of the one before.

    f = patch_size · 2^(levels - 1).
    """

    def __init__(self, out_channels: int, widths: Sequence[int], blocks: int, patch_size: int):
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch_size),
            nn.Conv2d(3 * patch_size**2, widths[0], 3, padding=1),
        ]
        for level, width in enumerate(widths):
            if level:
                layers.append(nn.Conv2d(widths[level - 1], width, 4, stride=2, padding=1))
            layers += [ResidualBlock(width, width) for _ in range(blocks)]
        layers += [_small_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], out_channels, 3, padding=1)]
        super().__init__(*layers)


class SmallDecoder(nn.Sequential):
    """The small encoder's mirror image; `out` is its last convolution."""

    def __init__(self, in_channels: int, widths: Sequence[int], blocks: int, patch_size: int):
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[-1], 3, padding=1)]
        for level in reversed(range(len(widths))):
            layers += [ResidualBlock(widths[level], widths[level]) for _ in range(blocks)]
            if level:
                # sub-pixel convolution: as many parameters where the map is small as a transposed one, no checkerboard
                layers += [nn.Conv2d(widths[level], 4 * widths[level - 1], 3, padding=1), nn.PixelShuffle(2)]
        layers += [
            _small_norm(widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], 3 * patch_size**2, 3, padding=1),
            nn.PixelShuffle(patch_size),
        ]
        super().__init__(*layers)

    @property
    def out(self) -> nn.Module:
        """The last convolution."""
        return self[-2]


class SelfAttention(nn.Module):
    """Attention of one head among all positions, with a residual: (B, C, h, w) to the same."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w)."""
        tokens = self.norm(x).flatten(2).mT[:, None]  # one head: without that dimension torch takes its slowest way
        attended = F.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))
        return x + self.out(attended)[:, 0].mT.unflatten(2, x.shape[-2:])


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if the level has it; then a change of size."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attention: bool, resample: nn.Module, groups: int
    ):
        super().__init__()
        inputs = [in_channels] + [out_channels] * (blocks - 1)
        self.blocks = nn.ModuleList(ResidualBlock(channels, out_channels, groups) for channels in inputs)
        self.attentions = nn.ModuleList(SelfAttention(out_channels, groups) for _ in inputs if attention)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out, h', w')."""
        for place, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[place](x)
        return self.resample(x)


def downsample(channels: int) -> nn.Module:
    """Convolution of stride 2, padded at the right and at the bottom alone, as the published weights need it."""
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))


def upsample(channels: int) -> nn.Module:
    """Nearest neighbours, then a convolution: (B, C, h, w) to (B, C, 2h, 2w)."""
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution: (B, C, h, w) to the same."""

    def __init__(self, channels: int, attention: bool, groups: int):
        super().__init__()
        self.first = ResidualBlock(channels, channels, groups)
        self.attention = SelfAttention(channels, groups) if attention else nn.Identity()
        self.last = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w)."""
        return self.last(self.attention(self.first(x)))


class PaperEncoder(nn.Module):
    """The encoder of Rombach et al. 2022 (appendix G, after Esser et al. 2021, table 7); f = 2^(levels - 1).

    Args:
        out_channels: of the features, twice the latent's for a Gaussian posterior.
        widths: channels of each level.
        blocks: residual blocks a level.
        attention_levels: levels with attention after every block.
        middle_attention: whether there is attention at the lowest resolution.
        groups: of all group norms.
        to_latent: whether a 1 x 1 convolution follows, with `latent_features` channels going in.
    """

    def __init__(
        self,
        out_channels: int,
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        middle_attention: bool,
        groups: int,
        to_latent: bool,
        latent_features: int,
    ):
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                widths[max(level - 1, 0)],
                width,
                blocks,
                level in attention_levels,
                nn.Identity() if level == last else downsample(width),
                groups,
            )
            for level, width in enumerate(widths)
        )
        self.middle = Middle(widths[-1], middle_attention, groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], latent_features if to_latent else out_channels, 3, padding=1)
        self.to_latent = nn.Conv2d(latent_features, out_channels, 1) if to_latent else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, out_channels, H / f, W / f)."""
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        return self.to_latent(self.conv_out(F.silu(self.norm_out(self.middle(x)))))


class PaperDecoder(nn.Module):
    """The decoder of the same source, with one more block a level; `levels` stand in the order of computation.

    `from_latent`: whether a 1 x 1 convolution comes first, with `latent_features` channels going out. The others as in
    `PaperEncoder`.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        middle_attention: bool,
        groups: int,
        from_latent: bool,
        latent_features: int,
    ):
        super().__init__()
        last = len(widths) - 1
        self.from_latent = nn.Conv2d(in_channels, latent_features, 1) if from_latent else nn.Identity()
        self.conv_in = nn.Conv2d(latent_features if from_latent else in_channels, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], middle_attention, groups)
        self.levels = nn.ModuleList(
            Level(
                widths[min(level + 1, last)],
                widths[level],
                blocks + 1,
                level in attention_levels,
                upsample(widths[level]) if level else nn.Identity(),
                groups,
            )
            for level in reversed(range(len(widths)))
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=EPSILON)
        self.out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, 3, h · f, w · f)."""
        x = self.middle(self.conv_in(self.from_latent(latents)))
        for level in self.levels:
            x = level(x)
        return self.out(F.silu(self.norm_out(x)))
