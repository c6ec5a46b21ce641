"""Layers that several denoisers share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.settings import SettingError


def zero_init(module: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The module with weights and bias zero, so that the branch it ends starts as no change at all."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def group_norm(channels: int, groups: int = 32) -> nn.GroupNorm:
    """Group norm with at most `groups` groups of at least 4 channels, for networks of any width."""
    return nn.GroupNorm(math.gcd(min(groups, max(channels // 4, 1)), channels), channels)


class TimeEmbedding(nn.Module):
    """Sinusoidal features of t in [0, 1] and a two-layer network (Ho et al. 2020, appendix B): (B,) -> (B, width)."""

    frequencies: Tensor

    def __init__(self, width: int, features: int = 128, max_period: float = 10_000.0):
        super().__init__()
        half = features // 2
        # t is scaled to 1000, the number of steps for which these frequencies were designed
        frequencies = 1000.0 * torch.exp(-math.log(max_period) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embedding (B, width) of times t (B,)."""
        angles = t.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(next(self.mlp.parameters()).dtype))


class ResidualBlock(nn.Module):
    """Two convolutions with adaptive group norm (Dhariwal and Nichol 2021, section 3.1).

    x (B, in, h, w) and embedding (B, width) to (B, out, h, w). The embedding sets scale and shift of the second norm.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_width: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = zero_init(nn.Linear(embedding_width, 2 * out_channels))
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features (B, out, h, w)."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


def attention_heads(channels: int, head_channels: int) -> int:
    """How many heads of about `head_channels` channels share the width `channels`."""
    heads = max(channels // head_channels, 1)
    if channels % heads:
        raise SettingError(f"head_channels: {head_channels} does not divide the width {channels}")
    return heads


class SelfAttention(nn.Module):
    """Multi-head self-attention over the positions of a feature map, with a residual: (B, C, h, w) to the same."""

    def __init__(self, channels: int, head_channels: int = 32):
        super().__init__()
        self.heads = attention_heads(channels, head_channels)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w)."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, channels)
        return x + self.out(attended).transpose(1, 2).reshape(x.shape)


class CrossAttention(nn.Module):
    """Every position of a feature map (B, C, h, w) attends to tokens (B, T, token_width), with a residual."""

    def __init__(self, channels: int, token_width: int, head_channels: int = 32):
        super().__init__()
        self.heads = attention_heads(channels, head_channels)
        self.norm = group_norm(channels)
        self.token_norm = nn.LayerNorm(token_width)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(token_width, 2 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Features (B, C, h, w). `mask` bool (B, T): where there are tokens, one at least."""
        batch, channels = x.shape[:2]
        positions = self.norm(x).flatten(2).transpose(1, 2)
        q = self.query(positions).reshape(batch, -1, self.heads, channels // self.heads).transpose(1, 2)
        kv = self.key_value(self.token_norm(tokens))
        k, v = kv.reshape(batch, tokens.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        heard = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=heard)
        return x + self.out(attended.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class FeedForward(nn.Module):
    """Two linear layers at each position, gated, with a residual (Shazeer 2020): (B, C, h, w) to the same."""

    def __init__(self, channels: int, expansion: int = 2):
        super().__init__()
        self.norm = group_norm(channels)
        self.enter = nn.Conv2d(channels, 2 * expansion * channels, 1)
        self.leave = zero_init(nn.Conv2d(expansion * channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w)."""
        hidden, gate = self.enter(self.norm(x)).chunk(2, dim=1)
        return x + self.leave(hidden * F.gelu(gate))


class TransformerLayer(nn.Module):
    """Attention among positions and from them to tokens, and a feed-forward layer (Rombach et al. 2022, E.2)."""

    def __init__(self, channels: int, token_width: int, head_channels: int = 32, expansion: int = 2):
        super().__init__()
        self.own = SelfAttention(channels, head_channels)
        self.cross = CrossAttention(channels, token_width, head_channels)
        self.feed_forward = FeedForward(channels, expansion)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Features (B, C, h, w), told tokens (B, T, token_width) where `mask` (B, T) is True."""
        return self.feed_forward(self.cross(self.own(x), tokens, mask))


class SpatialTransformer(nn.ModuleList):
    """`depth` transformer layers over the positions of a feature map."""

    def __init__(self, channels: int, token_width: int, head_channels: int = 32, depth: int = 1, expansion: int = 2):
        super().__init__(TransformerLayer(channels, token_width, head_channels, expansion) for _ in range(depth))

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Features (B, C, h, w), told tokens (B, T, token_width) where `mask` (B, T) is True."""
        for layer in self:
            x = layer(x, tokens, mask)
        return x
