"""Convolutional autoencoders: encoder, regularizer, decoder (Rombach et al. 2022, section 3.1 and appendix G)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ldmlab.autoencoders.base import Autoencoder, DiagonalGaussian
from ldmlab.autoencoders.networks import PaperDecoder, PaperEncoder, SmallDecoder, SmallEncoder
from ldmlab.autoencoders.regularizers import LatentMove, Regularizer, stay
from ldmlab.settings import SettingError, is_whole, require, require_counts


class Reconstruction(NamedTuple):
    """Reconstructions (B, 3, H, W), what the regularizer adds to the loss, and its values worth a log."""

    images: Tensor
    penalty: Tensor
    values: dict[str, Tensor]


class ConvolutionalAutoencoder(Autoencoder):
    """Encoder and decoder around a regularizer, whichever they are."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: SmallDecoder | PaperDecoder,
        regularizer: Regularizer,
        downsampling_factor: int,
        latent_channels: int,
    ):
        super().__init__(downsampling_factor, latent_channels)
        self.encoder, self.decoder, self.regularizer = encoder, decoder, regularizer
        self.codes = regularizer.codes

    def encode_whole(self, images: Tensor) -> DiagonalGaussian:
        """The posterior of latents for images (B, 3, H, W) in [-1, 1]; H and W are divisible by f."""
        return self.regularizer.posterior(self.encoder(images))

    def decode_whole(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) for raw latents (B, C, h, w), which a code rounds first."""
        return self.decoder(self.regularizer.decoder_input(latents))

    def code_indices(self, latents: Tensor) -> Tensor:
        """The code (B, h, w) of each position of raw latents (B, C, h, w)."""
        return self.regularizer.indices(latents)

    @property
    def last_layer(self) -> Tensor:
        """The weights through which every loss on reconstructions reaches the decoder."""
        weight = self.decoder.out.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, images: Tensor, move: LatentMove = stay) -> Reconstruction:
        """Images (B, 3, H, W) through the autoencoder as in training; `move` is what happens to latents on the way."""
        latents, penalty, values = self.regularizer(self.encode_whole(images), images.numel(), move)
        return Reconstruction(self.decoder(latents), penalty, values)


def _check(channel_multipliers: Any, **numbers: Any) -> None:
    require(
        isinstance(channel_multipliers, Sequence)
        and len(channel_multipliers) > 0
        and all(is_whole(multiplier) and multiplier > 0 for multiplier in channel_multipliers),
        "channel_multipliers",
        "a list of whole numbers above 0, one for each level,",
        channel_multipliers,
    )
    require_counts(**numbers)


class SmallAutoencoder(ConvolutionalAutoencoder):
    """An autoencoder for short budgets: it works on patches, without attention.

    Args:
        downsampling_factor: f, a power of two; the latent's side is the image's divided by it.
        latent_channels: channels C of the latent.
        regularizer: what makes the latents simple; called with `latent_channels` where it has to know them.
        channels: width of the first level.
        channel_multipliers: width of each level in units of `channels`; each level after the first halves the size.
            What is left of the factor, f / 2^(levels - 1), is the size of the patches in which pixels enter and leave.
        encoder_blocks, decoder_blocks: residual blocks a level.

    Raises:
        SettingError: the levels halve more often than the factor allows, or a number cannot be.
    """

    def __init__(
        self,
        downsampling_factor: int,
        latent_channels: int,
        regularizer: Regularizer,
        channels: int = 32,
        channel_multipliers: Sequence[int] = (1, 2),
        encoder_blocks: int = 1,
        decoder_blocks: int = 1,
    ):
        _check(
            channel_multipliers,
            downsampling_factor=downsampling_factor,
            latent_channels=latent_channels,
            channels=channels,
            encoder_blocks=encoder_blocks,
            decoder_blocks=decoder_blocks,
        )
        halvings = 2 ** (len(channel_multipliers) - 1)
        if downsampling_factor % halvings:
            raise SettingError(
                f"channel_multipliers: {len(channel_multipliers)} levels downsample by at least "
                f"{halvings}, more than the factor {downsampling_factor}"
            )
        patch_size = downsampling_factor // halvings
        widths = [channels * multiplier for multiplier in channel_multipliers]
        super().__init__(
            SmallEncoder(regularizer.outputs * latent_channels, widths, encoder_blocks, patch_size),
            SmallDecoder(latent_channels, widths, decoder_blocks, patch_size),
            regularizer,
            downsampling_factor,
            latent_channels,
        )


class PaperAutoencoder(ConvolutionalAutoencoder):
    """The autoencoder of latent diffusion's paper, whose published weights fit it.

    Args:
        downsampling_factor: f, which is 2^(levels - 1).
        latent_channels: channels C of the latent.
        regularizer: as for `SmallAutoencoder`.
        channels: width of the first level.
        channel_multipliers: width of each level in units of `channels`.
        blocks: residual blocks a level; the decoder has one more.
        attention_levels: levels with attention after every block; 0 is the level of the image's own size.
        middle_attention: attention at the lowest resolution.
        groups: of all group norms.
        latent_features: channels between conv_out and the 1 x 1 convolution around the latent; None: `latent_channels`.
        latent_convolutions: whether there are those 1 x 1 convolutions, for encoder and for decoder.

    Raises:
        SettingError: levels and factor do not fit together, or a number cannot be.
    """

    def __init__(
        self,
        downsampling_factor: int,
        latent_channels: int,
        regularizer: Regularizer,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 2,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        groups: int = 32,
        latent_features: int | None = None,
        latent_convolutions: Sequence[bool] = (True, True),
    ):
        latent_features = latent_channels if latent_features is None else latent_features
        _check(
            channel_multipliers,
            downsampling_factor=downsampling_factor,
            latent_channels=latent_channels,
            channels=channels,
            blocks=blocks,
            groups=groups,
            latent_features=latent_features,
        )
        levels = len(channel_multipliers)
        if 2 ** (levels - 1) != downsampling_factor:
            raise SettingError(
                f"channel_multipliers: {levels} levels downsample by {2 ** (levels - 1)}, not by {downsampling_factor}"
            )
        known = isinstance(attention_levels, Sequence) and all(level in range(levels) for level in attention_levels)
        require(known, "attention_levels", f"a list of levels from 0 to {levels - 1}", attention_levels)
        widths = [channels * multiplier for multiplier in channel_multipliers]
        if any(width % groups for width in widths):
            raise SettingError(f"groups: {groups} do not divide the widths {widths} evenly")
        encoder_convolution, decoder_convolution = latent_convolutions
        structure = (widths, blocks, attention_levels, middle_attention, groups)
        outputs = regularizer.outputs
        super().__init__(
            PaperEncoder(outputs * latent_channels, *structure, encoder_convolution, outputs * latent_features),
            PaperDecoder(latent_channels, *structure, decoder_convolution, latent_features),
            regularizer,
            downsampling_factor,
            latent_channels,
        )
