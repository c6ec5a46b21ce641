"""How well an autoencoder gives images back, over a whole split."""

from __future__ import annotations

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure


class Reconstruction:
    """PSNR and SSIM, accumulated over batches of images and their reconstructions.

    * `recon_psnr`: mean of the images' own PSNR, in dB, higher is better. One PSNR of the mean error over all images
      would be lower and would be decided by the worst of them. Infinite when some image is given back exactly, as by
      the identity autoencoder.
    * `recon_ssim`: mean structural similarity (Wang et al. 2004), Gaussian window of 11 pixels, per channel, at most 1.
      Images need 6 pixels a side or more.

    Both are measured on [0, 1], so `data_range` is 1. SSIM's luminance term compares mean brightnesses as positive
    numbers: on [-1, 1] it would be another quantity. In distributed runs `compute` gathers all processes' images.
    """

    def __init__(self) -> None:
        # a plain class, as extractors are: torchmetrics' states stay out of the state_dict of whoever holds this
        self._metrics = MetricCollection(
            {
                "recon_psnr": PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)),
                "recon_ssim": StructuralSimilarityIndexMeasure(data_range=1.0),
            },
            compute_groups=False,
        )

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Adds a batch: both (B, 3, H, W), images in [-1, 1]; reconstructions are clamped to it."""
        self._metrics.to(images.device)
        self._metrics.update(_to_unit(reconstructions), _to_unit(images))

    def compute(self) -> dict[str, float]:
        """`recon_psnr` and `recon_ssim` of all images so far."""
        return {name: float(value) for name, value in self._metrics.compute().items()}


def _to_unit(images: Tensor) -> Tensor:
    """[-1, 1] to [0, 1] in float32: half precision has steps of 0.5 % near 1."""
    return (images.detach().float().clamp(-1, 1) + 1) / 2
