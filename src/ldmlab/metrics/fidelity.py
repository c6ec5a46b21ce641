"""Do images show what the model was told? Judges that look at an image and at what was told of it.

Each gives named values (B,) for images (B, 3, H, W) in [-1, 1], beside `examples`: the batch of the real images that
the conditions come from (`image` among them) with everything that was told. NaN stands where a value does not apply.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldmlab.metrics.extractors import FeatureExtractor, to_uint8
from ldmlab.metrics.reconstruction import LPIPS, reconstruction_quality
from ldmlab.types import Batch, Oracle


class Judge(Protocol):
    """Looks at images and at what was told of them."""

    of_real: bool
    """Whether real images and reconstructions are judged too, as the ceiling."""
    reads_features: bool
    """Whether it looks at the features of images, or at the images alone."""

    def __call__(self, images: Tensor, examples: Batch, features: Tensor) -> dict[str, Tensor]:
        """Named values (B,); `features` (B, D) are those of the images."""
        ...

    def manifest(self) -> dict[str, Any]:
        """How it judges."""
        ...


class OracleJudge:
    """What a data set itself reads in an image, against the entries of a batch that were told."""

    of_real, reads_features = True, False

    def __init__(self, oracle: Oracle, entries: Sequence[str]):
        self.oracle, self.entries = oracle, tuple(entries)

    def __call__(self, images: Tensor, examples: Batch, features: Tensor) -> dict[str, Tensor]:
        """Scores named `oracle_...`, from 0 to 1."""
        # of 8-bit images, which is what anybody else would look at
        seen = to_uint8(images).cpu().float() / 127.5 - 1
        return {f"oracle_{name}": value for name, value in self.oracle.scores(seen, examples, self.entries).items()}

    def manifest(self) -> dict[str, Any]:
        """How it judges."""
        return {"judge": type(self.oracle).__name__}


class Probe:
    """A linear classifier on frozen features, fitted on real training images: is it the class that was told?

    The pooled features are standardised; the classifier is scikit-learn's logistic regression. Its name says to how
    many images it was fitted.
    """

    of_real, reads_features = True, True

    def __init__(self, features: Tensor, labels: Tensor, extractor: FeatureExtractor, seed: int):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.name = extractor.metric_name(f"probe_label_n{len(features)}")
        self.told = {**extractor.manifest(), "fitted_to": len(features), "fitted_seed": seed}
        # strongly regularised: there are about as many features as images
        self.classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        with warnings.catch_warnings():
            # where classes have few images it takes them for numbers that were not meant as classes
            warnings.filterwarnings("ignore", message="The number of unique classes")
            self.classifier.fit(features.double().cpu().numpy(), labels.cpu().numpy())

    def __call__(self, images: Tensor, examples: Batch, features: Tensor) -> dict[str, Tensor]:
        """1 for an image that is taken for its class, 0 for another."""
        found = torch.from_numpy(np.asarray(self.classifier.predict(features.double().cpu().numpy())))
        return {self.name: (found == examples["label"].cpu()).double()}

    def manifest(self) -> dict[str, Any]:
        """How it judges."""
        return {"judge": "logistic regression on features", **self.told}


class SuperResolutionJudge:
    """How near an image is to the one that the small image was made of, and to the small image itself.

    `shrink` takes images (B, 3, H, W) to the size of the small ones.
    """

    of_real, reads_features = False, False

    def __init__(self, shrink: Callable[[Tensor], Tensor], lpips: LPIPS | None):
        self.shrink, self.lpips = shrink, lpips

    def __call__(self, images: Tensor, examples: Batch, features: Tensor) -> dict[str, Tensor]:
        """`super_resolution_psnr` in dB, `_ssim`, LPIPS where asked for; `_consistency_psnr` of the small images."""
        images, originals, small = (
            x.to(images.device) for x in (images, examples["image"], examples["low_resolution"])
        )
        found = reconstruction_quality(originals, images, self.lpips)
        named = {name.replace("recon_", "super_resolution_"): value for name, value in found.items()}
        error = (self.shrink(images) - small).square().flatten(1).mean(1) * 127.5**2
        return {**named, "super_resolution_consistency_psnr": psnr(error)}

    def manifest(self) -> dict[str, Any]:
        """How it judges."""
        eyes = {} if self.lpips is None else {"weights_sha256": self.lpips.hash}
        return {"judge": "the original image", **eyes}


class InPaintingJudge:
    """How near the painted part is to what was there, and whether anything else was touched."""

    of_real, reads_features = False, False

    def __call__(self, images: Tensor, examples: Batch, features: Tensor) -> dict[str, Tensor]:
        """`inpainting_inside_psnr` in dB, and `inpainting_outside_error`: the largest change elsewhere, of 255."""
        mask = examples["mask"].to(images.device)
        seen, original = to_uint8(images).double(), to_uint8(examples["image"].to(images.device)).double()
        difference = (seen - original).abs()
        inside = (difference.square() * mask).flatten(1).sum(1) / (3 * mask.flatten(1).sum(1))
        outside = (difference * ~mask).flatten(1).amax(1)
        return {"inpainting_inside_psnr": psnr(inside), "inpainting_outside_error": outside}

    def manifest(self) -> dict[str, Any]:
        """How it judges."""
        return {"judge": "the original image"}


ROUNDING = 1 / 12
"""The mean squared error of rounding to whole numbers."""


def psnr(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors of bytes (B,).

    At most 58.9, that of an error as small as rounding makes: flat parts come out without any, and a single infinite
    value would make a mean infinite.
    """
    return 10 * (255**2 / error.clamp(min=ROUNDING)).log10()


def bicubic(small: Tensor, size: Sequence[int]) -> Tensor:
    """Small images (B, 3, h, w) enlarged to `size` by bicubic interpolation: what super-resolution has to beat."""
    return F.interpolate(small, size=list(size), mode="bicubic").clamp(-1, 1)
