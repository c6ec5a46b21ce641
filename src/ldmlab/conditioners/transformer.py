"""What conditioners that read sequences of tokens share."""

from __future__ import annotations

from torch import nn

from ldmlab.settings import SettingError, require_counts


def token_transformer(width: int, layers: int, heads: int) -> nn.TransformerEncoder:
    """A transformer in which every token of a sequence (B, T, width) sees all others, norms first."""
    require_counts(width=width, layers=layers, heads=heads)
    if width % heads:
        raise SettingError(f"heads: {heads} do not divide the width {width}")
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    # without nested tensors, whose results are of other lengths than their masks
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
