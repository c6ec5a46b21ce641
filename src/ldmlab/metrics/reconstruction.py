"""How well an autoencoder gives images back, image by image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from ldmlab.metrics.extractors.base import full_precision
from ldmlab.pretrained.digests import digest_of
from ldmlab.pretrained.lpips import load_lpips

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_WINDOW = 11


class LPIPS:
    """Learned perceptual image patch similarity (Zhang et al. 2018) by torchmetrics; 0 for equal images.

    `network` is "alex", "vgg" or "squeeze", as the name of the metric says. Its ImageNet weights are torchvision's, in
    torch.hub's cache or downloaded to it. Raises `UserError` where they cannot be had.
    """

    def __init__(self, network: str):
        self.network = load_lpips(network, "metrics.lpips", "metrics.lpips=null")
        self.name = f"lpips_{network}"
        self.hash = digest_of(self.network)

    @torch.inference_mode()
    def __call__(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """The similarity of each pair, (B,); both (B, 3, H, W) in [0, 1]."""
        with full_precision(images.device):
            return self.network.to(images.device)(images, reconstructions, normalize=True).flatten()


@torch.inference_mode()
def reconstruction_quality(images: Tensor, reconstructions: Tensor, lpips: LPIPS | None = None) -> dict[str, Tensor]:
    """What each image lost on its way through an autoencoder: named values (B,).

    * `recon_psnr`: peak signal-to-noise ratio in dB; infinite for an image that is given back exactly. Its mean over
      images is higher than the PSNR of the mean error, which the worst images decide.
    * `recon_ssim`: structural similarity (Wang et al. 2004), Gaussian window of 11 pixels, per channel, at most 1.
    * `recon_ms_ssim`: the same over five scales (Wang et al. 2003), for images of 176 px or more. Smaller ones have
      room for fewer scales, whose weights then sum to 1 again, and the name says so: `recon_ms_ssim_3scales`.
    * `recon_lpips_...`, where asked for.

    Both are (B, 3, H, W), images in [-1, 1]; reconstructions are clamped to it. All is measured on [0, 1]: SSIM's
    luminance term compares mean brightnesses as positive numbers, and on [-1, 1] would be another quantity.
    """
    x, y = _to_unit(images), _to_unit(reconstructions)
    options: dict[str, Any] = {"data_range": 1.0, "reduction": "none"}
    values: dict[str, Any] = {
        "recon_psnr": peak_signal_noise_ratio(y, x, dim=(1, 2, 3), **options),
        "recon_ssim": structural_similarity_index_measure(y, x, **options),
    }
    scales = scales_that_fit(x.shape[-1])
    if scales > 1:
        weights = MS_SSIM_WEIGHTS[:scales]
        betas = tuple(weight / sum(weights) for weight in weights)
        name = "recon_ms_ssim" + ("" if scales == len(MS_SSIM_WEIGHTS) else f"_{scales}scales")
        values[name] = multiscale_structural_similarity_index_measure(y, x, betas=betas, normalize="relu", **options)
    if lpips is not None:
        values[f"recon_{lpips.name}"] = lpips(x, y)
    # torchmetrics drops the dimension of a batch of one
    return {name: value.reshape(len(images)) for name, value in values.items()}


def scales_that_fit(size: int) -> int:
    """The number of MS-SSIM's scales that torchmetrics takes of images of `size` pixels a side, at most five."""
    fitting = [n for n in range(1, len(MS_SSIM_WEIGHTS) + 1) if size // max(1, (n - 1) ** 2) >= MS_SSIM_WINDOW]
    return max(fitting, default=0)


def feature_loss(images: Tensor, reconstructions: Tensor) -> Tensor:
    """The share of the images' variance, in features (N, D), that reconstruction lost, for each image (N,).

    |f(x) - f(x̂)|² over the mean squared distance of two different images: 0 for perfect reconstructions, 1 for ones
    that are no closer than any other image.
    """
    images, reconstructions = images.double(), reconstructions.double()
    between_images = 2 * images.var(0).sum()
    return (images - reconstructions).square().sum(1) / between_images


def _to_unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1] in float32: half precision has steps of 0.5 % near 1."""
    return (images.detach().float().clamp(-1, 1) + 1) / 2
