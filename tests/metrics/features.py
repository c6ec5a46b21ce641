"""Features for tests of distances."""

import torch


def features(count, dimensions=16, seed=0, shift=0.0, scale=1.0):
    """Correlated, skewed and positive, as pooled activations are."""
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99)) / dimensions**0.5
    raw = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))
    return (raw @ mixing * scale + shift).clamp(min=-0.5) + 0.5
