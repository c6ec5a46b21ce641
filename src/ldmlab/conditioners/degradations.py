"""How a training image becomes the small one that super-resolution is told."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

DEGRADATIONS = ("bicubic", "blur_noise_jpeg")
KERNELS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX)


def degraded(images: Tensor, factor: int, degradation: str, seeds: Sequence[int]) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] made smaller `factor` times, to values that 8-bit images have.

    `seeds` are those of the images, for what is drawn.
    """
    if degradation == "bicubic":
        size = [side // factor for side in images.shape[2:]]
        small = F.interpolate(images, size=size, mode="bicubic", antialias=True)
        return ((small.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    pairs = zip(images, seeds, strict=True)
    return torch.stack([blurred_noisy_compressed(image, factor, seed) for image, seed in pairs])


def blurred_noisy_compressed(image: Tensor, factor: int, seed: int) -> Tensor:
    """An image (3, H, W) in [-1, 1] blurred, made smaller, with noise and the traces of JPEG, as much as `seed` says.

    Blur of up to half the factor in pixels, one of three kernels, noise of up to 10 of 255, JPEG quality 40 to 95.
    """
    dice = np.random.default_rng(seed)
    picture = Image.fromarray(_bytes(image.permute(1, 2, 0).cpu().numpy()))
    picture = picture.filter(ImageFilter.GaussianBlur(dice.uniform(0, factor / 2)))
    size = (picture.width // factor, picture.height // factor)
    picture = picture.resize(size, KERNELS[dice.integers(len(KERNELS))])
    pixels = np.asarray(picture) / 127.5 - 1
    pixels = pixels + dice.normal(0, dice.uniform(0, 10) / 127.5, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(_bytes(pixels)).save(file, "JPEG", quality=int(dice.integers(40, 96)))
    read = np.array(Image.open(file))
    return (torch.from_numpy(read).permute(2, 0, 1).float() / 127.5 - 1).to(image.device)


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
