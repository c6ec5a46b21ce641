"""The U-Net of DDPM and ADM, for pixels and latents alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.denoisers.layers import (
    ResidualBlock,
    SelfAttention,
    SpatialTransformer,
    TimeEmbedding,
    group_norm,
    zero_init,
)
from ldmlab.settings import SettingError, require_counts
from ldmlab.types import Conditioning


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution: (B, C, h, w) to (B, C, 2h, 2w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Features of twice the size."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """U-Net with residual blocks, adaptive group norm and attention (Ho et al. 2020; Dhariwal and Nichol 2021).

    Where there are tokens, attention is a spatial transformer that looks at them too (Rombach et al. 2022); a map
    enters beside the sample.

    Args:
        in_channels: channels C of the sample.
        condition_width: width D of the conditioning's `vector` route, 0 if there is none.
        token_width: width D of its `tokens`, likewise.
        spatial_channels: channels of its `spatial` map, likewise.
        out_channels: channels of the prediction, None for as many as the sample has; twice for learned variance.
        channels: width of the first level.
        channel_multipliers: width of each level in units of `channels`; each level after the first halves the size.
        blocks: residual blocks a level on the way down; the way up has one more.
        attention_levels: indices of the levels that attend, 0 being the first; the middle always does.
        patch_size: the sample enters as patches of this size, folded into channels, and leaves the same way: a
            pixel model of the cost of a latent one. 1 is the usual U-Net.
        head_channels: channels of an attention head.
        heads: heads of each attention, in place of `head_channels`.
        transformer_depth: layers of a spatial transformer, where there are tokens.
        transformer_expansion: width of its feed-forward layers, in units of the feature map's.
        dropout: probability within residual blocks.
    """

    def __init__(
        self,
        in_channels: int,
        condition_width: int = 0,
        token_width: int = 0,
        spatial_channels: int = 0,
        out_channels: int | None = None,
        channels: int = 64,
        channel_multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention_levels: Sequence[int] = (1,),
        patch_size: int = 1,
        head_channels: int = 32,
        heads: int | None = None,
        transformer_depth: int = 1,
        transformer_expansion: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        require_counts(transformer_depth=transformer_depth, transformer_expansion=transformer_expansion)
        widths = [channels * multiplier for multiplier in channel_multipliers]
        embedding = 4 * channels
        self.patch_size = patch_size
        self.told = {"vector": condition_width > 0, "tokens": token_width > 0, "spatial": spatial_channels > 0}
        self.time_embedding = TimeEmbedding(embedding)
        self.condition = nn.Linear(condition_width, embedding) if condition_width else None

        def attends(width: int) -> nn.Module:
            if heads is not None and width % heads:
                raise SettingError(f"heads: {heads} does not divide the width {width}")
            each = head_channels if heads is None else width // heads
            if token_width:
                return SpatialTransformer(width, token_width, each, transformer_depth, transformer_expansion)
            return SelfAttention(width, each)

        def attention(level: int, width: int) -> nn.Module:
            return attends(width) if level in attention_levels else nn.Identity()

        self.conv_in = nn.Conv2d((in_channels + spatial_channels) * patch_size**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for level, level_width in enumerate(widths):
            stage = nn.ModuleList()
            for _ in range(blocks):
                block = ResidualBlock(width, level_width, embedding, dropout)
                stage.append(nn.ModuleList([block, attention(level, level_width)]))
                width = level_width
                skips.append(width)
            if level + 1 < len(widths):
                stage.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            self.down.append(stage)

        self.middle = nn.ModuleList(
            [
                ResidualBlock(width, width, embedding, dropout),
                attends(width),
                ResidualBlock(width, width, embedding, dropout),
            ]
        )

        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            stage = nn.ModuleList()
            for _ in range(blocks + 1):
                block = ResidualBlock(width + skips.pop(), level_width, embedding, dropout)
                stage.append(nn.ModuleList([block, attention(level, level_width)]))
                width = level_width
            if level > 0:
                stage.append(Upsample(width))
            self.up.append(stage)

        self.norm_out = group_norm(width)
        self.conv_out = zero_init(nn.Conv2d(width, (out_channels or in_channels) * patch_size**2, 3, padding=1))

    @property
    def multiple(self) -> int:
        """What height and width of a sample are divisible by."""
        return self.patch_size * 2 ** (len(self.down) - 1)

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning | None = None) -> Tensor:
        """Prediction (B, C, h, w) for a noisy sample x (B, C, h, w) at times t (B,).

        h and w are divisible by patch_size · 2^(levels - 1). A route that the network was built for must be there.
        """
        told = conditioning or Conditioning()
        for route, wanted in self.told.items():
            if wanted != (getattr(told, route) is not None):
                raise ValueError(f"this U-Net was built {'for' if wanted else 'without'} the route `{route}`")
        embedding = self.time_embedding(t)
        if self.condition is not None:
            embedding = embedding + self.condition(told.vector)
        embedding = F.silu(embedding)

        if told.spatial is not None:
            x = torch.cat([x, told.spatial.to(x)], dim=1)
        x = self.conv_in(F.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x)
        skips = [x]
        for stage in self.down:
            for part in stage.children():
                x = self._block(part, x, embedding, told) if isinstance(part, nn.ModuleList) else part(x)
                skips.append(x)
        first, attention, second = self.middle
        x = second(self._attend(attention, first(x, embedding), told), embedding)
        for stage in self.up:
            for part in stage.children():
                if isinstance(part, nn.ModuleList):
                    x = self._block(part, torch.cat([x, skips.pop()], dim=1), embedding, told)
                else:
                    x = part(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x

    @classmethod
    def _block(cls, part: nn.ModuleList, x: Tensor, embedding: Tensor, told: Conditioning) -> Tensor:
        block, attention = part
        return cls._attend(attention, block(x, embedding), told)

    @staticmethod
    def _attend(attention: nn.Module, x: Tensor, told: Conditioning) -> Tensor:
        if isinstance(attention, SpatialTransformer):
            return attention(x, told.tokens, told.token_mask)
        return attention(x)
