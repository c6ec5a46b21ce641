"""Perceptual losses: how different two images look to a network that was trained to see (Zhang et al. 2018).

Such a loss makes reconstructions sharp where a pixel loss leaves them blurred. Both losses here are blind to some of
what pixels say (a change of brightness, for one), so a pixel loss stays beside them.

The network that a loss was computed on must not judge the result. Each loss says the SHA-256 of its weights
(`trained_against`), and measuring refuses a judge with the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.pretrained.digests import digest_of
from ldmlab.pretrained.efficientnet_lite import STAGES, VARIANTS, load_efficientnet_lite
from ldmlab.pretrained.lpips import load_lpips
from ldmlab.settings import is_number, is_whole, require, require_not_negative


class PerceptualLoss:
    """A frozen network's opinion. No `nn.Module`: whoever holds one keeps it out of its weights and checkpoints.

    `name` is that of the logged value; `weight` multiplies it in the loss.
    """

    name: str
    trained_against: tuple[str, ...]

    def __init__(self, network: nn.Module, weight: float):
        require_not_negative(weight=weight)
        self.network: Any = network.eval().requires_grad_(False)
        self.weight = weight

    def __call__(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """The mean difference of reconstructions and images, both (B, 3, H, W) in [-1, 1]; a number."""
        self.network.to(images.device)
        return self.difference(reconstructions, images)

    def difference(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """The same, with the network where the images are."""
        raise NotImplementedError


class LPIPS(PerceptualLoss):
    """LPIPS on the VGG network, or another that it knows; its weights are downloaded once."""

    def __init__(self, network: str = "vgg", weight: float = 1.0):
        instead = "autoencoder/perceptual=effnet_lite1"
        super().__init__(load_lpips(network, "autoencoder.perceptual.network", instead), weight)
        self.name = f"lpips_{network}"
        self.trained_against = (digest_of(self.network),)

    def difference(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """The mean LPIPS."""
        return self.network(reconstructions, images, normalize=False).mean()


class EffNetLite1(PerceptualLoss):
    """The mean squared difference of EfficientNet-Lite1's stages, each normalised over its channels.

    Not LPIPS, whose weights of channels were fitted to people's judgement: nothing is calibrated here. Its weights come
    with ldmlab.

    Args:
        weight: of the loss.
        stages: how many stages of the network are compared, from the first at 1/2 of its input's size; 1 to 7.
        enlarge: images are enlarged so many times first: the network knows larger ones than a laptop trains on.
        crop: side of the random part of the images that is compared, as a share of theirs. The cost falls with its
            square.
    """

    def __init__(self, weight: float = 1.0, stages: int = 5, enlarge: int = 1, crop: float = 1.0):
        last = len(STAGES)
        require(is_whole(stages) and 1 <= stages <= last, "stages", f"a whole number from 1 to {last}", stages)
        require(is_whole(enlarge) and enlarge >= 1, "enlarge", "a whole number of 1 or more", enlarge)
        require(is_number(crop) and 0 < crop <= 1, "crop", "a number above 0, 1 at most,", crop)
        network = load_efficientnet_lite("lite1").fold_batch_norm().to(memory_format=torch.channels_last)
        super().__init__(network, weight)
        self.name = "perceptual_lite1"
        self.trained_against = (VARIANTS["lite1"][2],)
        self.stages, self.enlarge, self.crop = stages, enlarge, crop

    def difference(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """The mean over stages, positions and images of the squared distance of directions."""
        part = self._random_part(*images.shape[2:])
        got, wanted = reconstructions[part], images[part]
        with torch.no_grad():
            directions = self._directions(wanted)
        pairs = zip(self._directions(got), directions, strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()

    def _random_part(self, height: int, width: int) -> tuple[slice, ...]:
        """The place of a random part of images, the same for the whole batch."""
        place = [slice(None), slice(None)]
        for side in (height, width):
            kept = max(1, round(side * self.crop))
            start = int(torch.randint(side - kept + 1, ())) if kept < side else 0
            place.append(slice(start, start + kept))
        return tuple(place)

    def _directions(self, images: Tensor) -> list[Tensor]:
        if self.enlarge > 1:
            images = F.interpolate(images, scale_factor=self.enlarge, mode="bicubic")
        # the network's own normalisation, (x - 127) / 128 of bytes
        x = ((images.contiguous(memory_format=torch.channels_last) + 1) * 127.5 - 127) / 128
        return [F.normalize(stage, dim=1, eps=1e-6) for stage in self.network.stages(x, self.stages)]
