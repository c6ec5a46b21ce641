"""The Inception score, on whichever network's classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldmlab.metrics.checked import checked

SPLITS = 10


@dataclass(frozen=True)
class InceptionScore:
    """The mean over splits, and the standard deviation between them, which papers give as its error."""

    value: float
    deviation: float


def inception_score(logits: Tensor, seed: int = 0) -> InceptionScore:
    """exp E KL(p(class | image) || p(class)) (Salimans et al. 2016), the mean over 10 random splits of logits (N, C).

    It rises with N, as p(class) is that of a split; it knows nothing of real images, and on another network than
    Inception it is another score. Raises `UserError` for fewer than 20 images.
    """
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    scores = []
    for split in checked(logits, at_least=2 * SPLITS)[order].chunk(SPLITS):
        log_p = split.double().log_softmax(1)
        p = log_p.exp()
        scores.append((p * (log_p - p.mean(0).log())).sum(1).mean().exp())
    values = torch.stack(scores)
    return InceptionScore(float(values.mean()), float(values.std()))
