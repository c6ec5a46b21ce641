"""No compression: with it, pixel diffusion is the same code as latent diffusion."""

from __future__ import annotations

from torch import Tensor

from ldmlab.autoencoders.base import Autoencoder, DiagonalGaussian


class IdentityAutoencoder(Autoencoder):
    """Latents are the pixels, (B, 3, H, W), at downsampling factor 1. There is nothing to train."""

    def __init__(self) -> None:
        super().__init__(downsampling_factor=1, latent_channels=3)

    def encode_whole(self, images: Tensor) -> DiagonalGaussian:
        """The images themselves, without uncertainty."""
        return DiagonalGaussian.certain(images)

    def decode_whole(self, latents: Tensor) -> Tensor:
        """The latents themselves."""
        return latents
