"""What every feature extractor does.

An extractor is no `nn.Module`. A module that holds one keeps it out of its `state_dict`, its parameters and its
optimizer, and the module's `train()`, `half()` and `requires_grad_()` never reach it: distances do not depend on who
holds the extractor. Move it with its own `to(device)`.

Distances on different extractors, or on different input sizes, do not compare. Hence each extractor has a name that is
part of the metric's, and none ever takes another's place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.errors import UserError


@dataclass(frozen=True)
class Features:
    """What a network sees in N images.

    `pooled` (N, D) is what it sees at all; `spatial` (N, S), for networks that have it, is also where: a few channels
    of an intermediate map, flattened, for the spatial Fréchet distance (sFID).
    """

    pooled: Tensor
    spatial: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, rows: Sequence[int] | slice) -> Features:
        return Features(self.pooled[rows], None if self.spatial is None else self.spatial[rows])

    def to(self, device: torch.device | str) -> Features:
        """The same on a device."""
        return Features(self.pooled.to(device), None if self.spatial is None else self.spatial.to(device))

    @staticmethod
    def cat(parts: Sequence[Features]) -> Features:
        """The features of all images of `parts`, in their order."""
        spatial = [part.spatial for part in parts if part.spatial is not None]
        return Features(torch.cat([part.pooled for part in parts]), torch.cat(spatial) if spatial else None)


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

    def metric_name(self, metric: str) -> str:
        """The name of a metric on these features: "recall" is "recall_lite0_128"."""
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
    def __call__(self, images: Tensor) -> Features:
        """Features, float32 on the extractor's device, of images uint8 (B, 3, H, W) on any device.

        Images are bytes because files and data sets hold bytes: rounding one side of a comparison only already costs
        0.6 of Fréchet distance. See `to_uint8`.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        with full_precision(self.device):
            return Features.cat([self._features(part.to(self.device)) for part in images.split(self.batch_size)])

    def _features(self, images: Tensor) -> Features:
        raise NotImplementedError

    def logits(self, pooled: Tensor) -> Tensor | None:
        """Class logits (N, C) that the network gives to pooled features (N, D); None for one that knows no classes."""
        return None


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 in earnest: neither a trainer's mixed precision nor the TF32 of recent GPUs reaches what measures."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = matmul.allow_tf32
    settings = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    matmul.allow_tf32 = False
    try:
        with cudnn.flags(**settings, allow_tf32=False), torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32 = before


def resized(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) at `size` x `size`, bicubic with antialiasing; those of that size as they are."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True)


def resized_to_bytes(images: Tensor, size: int) -> Tensor:
    """The same in whole numbers of 0..255, as bicubic overshoots.

    Images resized beforehand, to bytes in a file, and images resized here then give the same features.
    """
    return resized(images, size).clamp(0, 255).round()


def check_judge(name: str, weights: str, trained_against: Collection[str]) -> None:
    """Refuses a judge whose weights, by their SHA-256, the run's own loss was trained against.

    Such a loss learns to please this very network, so its distances fall further than the images improve.
    """
    if weights in trained_against:
        raise UserError(
            f"{name}: the autoencoder was trained to please this very network (weights {weights[:12]}…), "
            "so it cannot judge the result; choose another one"
        )


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
