"""EfficientNet-Lite0: the features that need no download."""

from __future__ import annotations

import torch
from torch import Tensor

from ldmlab.metrics.extractors.base import FeatureExtractor, Features, resized_to_bytes
from ldmlab.pretrained.efficientnet_lite import FEATURES, VARIANTS, EfficientNetLite, load_efficientnet_lite

SPATIAL_STAGE = 4
"""The last stage at 1/16 of the input size, about where sFID takes Inception's."""


class EffNetLite0(FeatureExtractor):
    """EfficientNet-Lite0's 1280 pooled features, at an input size of choice. Its weights come with ldmlab.

    Images of another size than `input_size` are resized to a square of it. The size is part of the name, since the
    distances change with it: two disjoint thousands of CIFAR-10's images are at 721 with 64 px, at 177 with 128 px.

    Spatial features are the first channels of the map at 1/16 of the input size, as many as make about 1280 numbers,
    after the example of sFID (Nash et al. 2021, section 4.2), which takes 7 channels of Inception's 17 x 17.
    """

    network: EfficientNetLite

    def __init__(self, input_size: int = 128, batch_size: int = 32):
        # one thread of a CPU: 35 images/s as loaded, 66 with norms folded and channels last, at 128 px
        network = load_efficientnet_lite("lite0").fold_batch_norm().to(memory_format=torch.channels_last)
        super().__init__(network, batch_size)
        self.name = f"lite0_{input_size}"
        self.dimensions = FEATURES
        self.input_size = input_size
        self.resize = "bicubic, antialiased, rounded to bytes"
        self.hash = VARIANTS["lite0"][2]

    def _features(self, images: Tensor) -> Features:
        x = images.float().contiguous(memory_format=torch.channels_last)
        stages = self.network.stages((resized_to_bytes(x, self.input_size) - 127) / 128)
        spatial = stages[SPATIAL_STAGE]
        channels = max(1, FEATURES // spatial[0, 0].numel())
        return Features(stages[-1].mean((2, 3)), spatial[:, :channels].flatten(1))

    def logits(self, pooled: Tensor) -> Tensor:
        """ImageNet logits (N, 1000) of pooled features (N, 1280)."""
        with torch.inference_mode():
            return self.network.classify(pooled.to(self.device))
