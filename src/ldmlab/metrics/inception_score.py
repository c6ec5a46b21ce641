"""The Inception score, on whichever network's classes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldmlab.metrics.checked import checked

SPLITS = 10


@dataclass(frozen=True)
class InceptionScore:
    """The mean over splits, and the standard deviation between them, which papers give as its error."""

    value: float
    deviation: float


def inception_score(logits: Tensor, seed: int = 0) -> InceptionScore:
    """exp E KL(p(class | image) || p(class)) (Salimans et al. 2016), the mean over 10 random splits of logits (N, C).

    Torchmetrics computes it. It rises with N, as p(class) is that of a split; it knows nothing of real images, and on
    another network than Inception it is another score. Raises `UserError` for fewer than 20 images.
    """
    from torchmetrics.image.inception import InceptionScore as Metric

    warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save all extracted features")
    metric = Metric(feature=nn.Identity(), splits=SPLITS).set_dtype(torch.float64)
    metric.update(checked(logits, at_least=2 * SPLITS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return InceptionScore(float(mean), float(deviation))
