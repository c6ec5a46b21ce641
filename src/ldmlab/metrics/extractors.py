"""Feature extractors: networks that turn images into the features on which distances between sets are measured.

An extractor is no `nn.Module`. A module that holds one keeps it out of its `state_dict`, its parameters and its
optimizer, and the module's `train()`, `half()` and `requires_grad_()` never reach it: distances do not depend on who
holds the extractor. Move it with its own `to(device)`.

Distances on different extractors, or on different input sizes, do not compare. Hence each extractor has a name that is
part of the metric's, and none ever takes another's place.
"""

from __future__ import annotations

import http.client
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.errors import UserError
from ldmlab.metrics.efficientnet_lite import FEATURES, VARIANTS, file_digest, load_efficientnet_lite

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class FeatureExtractor:
    """Images to features, by a frozen network in eval mode and float32.

    `name` says which features these are, for example "lite0_128"; `dimensions` is their number per image, `hash` the
    SHA-256 of the network's weights and `resize` how images reach the network's input size. `batch_size` images go
    through the network at a time, whatever the number that a call is given.
    """

    name: str
    dimensions: int
    input_size: int
    resize: str
    hash: str

    def __init__(self, network: nn.Module, batch_size: int):
        self.network = network.eval().requires_grad_(False)
        self.batch_size = batch_size
        self.device = torch.device("cpu")

    @property
    def frechet_name(self) -> str:
        """The name of the Fréchet distance on these features, such as "fd_lite0_128"."""
        return self.metric_name("fd")

    @property
    def kernel_name(self) -> str:
        """The name of the kernel distance on these features, such as "kid_lite0_128"."""
        return self.metric_name("kid")

    def metric_name(self, metric: str) -> str:
        """The name of any other metric on these features: "recall" is "recall_lite0_128"."""
        return f"{metric}_{self.name}"

    def manifest(self) -> dict[str, str | int]:
        """What must be equal for two distances to compare, as far as the extractor goes."""
        return {
            "extractor": self.name,
            "input_size": self.input_size,
            "resize": self.resize,
            "weights_sha256": self.hash,
        }

    def to(self, device: torch.device | str) -> FeatureExtractor:
        """Moves the network to a device; images follow by themselves."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 (B, `dimensions`) on the extractor's device, for images uint8 (B, 3, H, W) on any device.

        Images are bytes because files and data sets hold bytes: rounding one side of a comparison only already costs
        0.6 of Fréchet distance. See `to_uint8`.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        # a trainer's mixed precision must not reach the features
        with torch.autocast(self.device.type, enabled=False):
            parts = [self._features(part.to(self.device)) for part in images.split(self.batch_size)]
        return torch.cat(parts)

    def _features(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class EffNetLite0(FeatureExtractor):
    """EfficientNet-Lite0's 1280 pooled features, at an input size of choice. Its weights come with ldmlab.

    Images of another size than `input_size` are resized to a square of it. The size is part of the name, since the
    distances change with it: two disjoint thousands of CIFAR-10's images are at 721 with 64 px, at 177 with 128 px.
    """

    def __init__(self, input_size: int = 128, batch_size: int = 32):
        # one thread of a CPU: 35 images/s as loaded, 66 with norms folded and channels last, at 128 px
        network = load_efficientnet_lite("lite0").fold_batch_norm().to(memory_format=torch.channels_last)
        super().__init__(network, batch_size)
        self.name = f"lite0_{input_size}"
        self.dimensions = FEATURES
        self.input_size = input_size
        self.resize = "bicubic, antialiased, rounded to bytes"
        self.hash = VARIANTS["lite0"][2]

    def _features(self, images: Tensor) -> Tensor:
        x = images.float().contiguous(memory_format=torch.channels_last)
        size = (self.input_size, self.input_size)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True)
            # bicubic overshoots; bytes again, so that images resized beforehand and here give the same features
            x = x.clamp(0, 255).round()
        return self.network.features((x - 127) / 128)  # type: ignore[operator]


class InceptionV3(FeatureExtractor):
    """Inception-v3's 2048 pooled features with torch-fidelity's weights and resize: FID and KID as papers report them.

    `weights_path` is a downloaded `weights-inception-2015-12-05-6726825d.pth`; None looks in torch.hub's cache, then
    downloads to it. Raises `UserError` without torch-fidelity, without the weights, or with other weights.
    """

    def __init__(self, weights_path: str | os.PathLike[str] | None = None, batch_size: int = 32):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError("FID needs torch-fidelity, which is not installed: pip install ldmlab[fid]") from None
        weights = _inception_weights(weights_path)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
        super().__init__(network, batch_size)
        self.name = "inception"
        self.dimensions = 2048
        self.input_size = network.INPUT_IMAGE_SIZE
        self.resize = "bilinear as in TensorFlow 1, not antialiased"
        self.hash = INCEPTION_SHA256

    @property
    def frechet_name(self) -> str:
        """Plainly "fid": the only features that may bear that name."""
        return "fid"

    def metric_name(self, metric: str) -> str:
        """The metric's own name: "kid", "recall"."""
        return metric

    def _features(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def _inception_weights(weights_path: str | os.PathLike[str] | None) -> Path:
    """The verified file of weights, downloaded when no path is given and torch.hub's cache has none."""
    name = INCEPTION_URL.rsplit("/", 1)[1]
    path = Path(weights_path) if weights_path else Path(torch.hub.get_dir()) / "checkpoints" / name
    remedy = f"download {INCEPTION_URL} to {path}, or set metrics.features.weights_path to it"
    if not path.is_file():
        if weights_path:
            raise UserError(f"the weights of Inception-v3 are not at {path}: download {INCEPTION_URL} to there")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), INCEPTION_SHA256)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise UserError(f"the weights of Inception-v3 could not be downloaded ({error}): {remedy}") from error
    if (digest := file_digest(path)) != INCEPTION_SHA256:
        raise UserError(
            f"{path} has SHA-256 {digest[:12]}… instead of {INCEPTION_SHA256[:12]}…, so it would not give FID: "
            f"delete it, then {remedy}"
        )
    return path


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1], any float type, as uint8 in [0, 255]: clamped and rounded to the nearest byte.

    Raises `UserError` for images with NaN, which would otherwise become black and be scored as images.
    """
    if images.isnan().any():
        broken = int(images.isnan().flatten(1).any(1).sum())
        raise UserError(
            f"{broken} of {len(images)} images hold NaN, so nothing can be measured: the model has diverged"
        )
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
