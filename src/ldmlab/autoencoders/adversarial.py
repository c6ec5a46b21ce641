"""The adversarial loss: a discriminator of patches, its hinge loss, and how much the autoencoder listens to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.settings import check_types, require, require_counts, require_not_negative
from ldmlab.types import OptimizerFactory


class PatchDiscriminator(nn.Sequential):
    """Images (B, 3, H, W) to a logit for each of many overlapping patches, (B, 1, h, w); high means real.

    After Isola et al. 2017, appendix 6.1.2, with group norm in place of batch norm: an image's logits do not depend on
    the others of its batch, so accumulating gradients changes nothing.

    Args:
        channels: width of the first layer; each further one is twice as wide, 8 times at most.
        layers: number of convolutions that halve the size; patches are 70 x 70 with 3, 34 x 34 with 2, 16 x 16 with 1.
    """

    def __init__(self, channels: int = 64, layers: int = 3):
        require_counts(channels=channels, layers=layers)
        widths = [channels * min(2**layer, 8) for layer in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for layer in range(1, layers + 1):
            width, stride = widths[layer], 2 if layer < layers else 1
            modules += [
                nn.Conv2d(widths[layer - 1], width, 4, stride, padding=1),
                nn.GroupNorm(max(width // 16, 1), width),
                nn.LeakyReLU(0.2),
            ]
        modules.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        super().__init__(*modules)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss (Lim and Ye 2017): 0 once all logits of real images are above 1, of others below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_factor(reconstruction: Tensor, adversarial: Tensor, largest: float) -> Tensor:
    """The factor that gives the adversarial loss as much say as the others have (Esser et al. 2021, eq. 7).

    `reconstruction` and `adversarial` are the norms of the two losses' gradients at the decoder's last layer. Clamped,
    because a discriminator that is sure of itself has hardly a gradient, and the quotient explodes.
    """
    return (reconstruction / (adversarial + 1e-6)).clamp(0, largest)


@dataclass(frozen=True)
class Adversary:
    """The discriminator, how it is trained, and when the autoencoder is told of it.

    The three times are shares of the budget. From `start` on the discriminator is trained; the autoencoder sees it from
    `heard_from` on, first faintly and after another `ramp` in full, because a discriminator that knows nothing yet is
    where reconstructions collapse.

    Args:
        discriminator: images to logits.
        optimizer: parameter groups to the discriminator's optimiser.
        weight: of the adversarial loss, beside the adaptive factor.
        start, heard_from, ramp: see above.
        largest_factor: limit of the adaptive factor.
    """

    discriminator: nn.Module
    optimizer: OptimizerFactory
    weight: float = 0.2
    start: float = 0.5
    heard_from: float = 0.6
    ramp: float = 0.1
    largest_factor: float = 10.0

    def __post_init__(self) -> None:
        check_types(self)
        require_not_negative(weight=self.weight, ramp=self.ramp, largest_factor=self.largest_factor)
        require(0 <= self.start <= 1, "start", "a share of the budget, 0 to 1,", self.start)
        require(self.start <= self.heard_from <= 1, "heard_from", f"a share from {self.start} to 1", self.heard_from)

    def phase(self, used: float) -> str:
        """What is trained once this share of the budget is used: "reconstruction", "discriminator" or "adversarial"."""
        if used < self.start:
            return "reconstruction"
        return "discriminator" if used < self.heard_from else "adversarial"

    def weight_at(self, used: float) -> float:
        """The weight once this share of the budget is used."""
        if used < self.heard_from:
            return 0.0
        return self.weight * (min(1.0, (used - self.heard_from) / self.ramp) if self.ramp else 1.0)
