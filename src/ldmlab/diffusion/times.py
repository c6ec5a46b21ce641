"""At which times the network is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class TimeSampler(Protocol):
    """A distribution of training times."""

    def __call__(self, batch_size: int, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        ...


def stratified_uniform(batch_size: int, device: torch.device) -> Tensor:
    """Uniform draws (B,), one in each of B equal bins: each is uniform, and together they cover [0, 1) evenly.

    The loss varies far more with t than between samples, so this removes most of its variance (Kingma et al. 2021,
    appendix I.1).
    """
    bins = torch.randperm(batch_size, device=device)
    return (bins + torch.rand(batch_size, device=device)) / batch_size


@dataclass(frozen=True)
class Uniform:
    """Uniform on [smallest, 1]."""

    smallest: float = 1e-3

    def __call__(self, batch_size: int, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        return self.smallest + (1 - self.smallest) * stratified_uniform(batch_size, device)


@dataclass(frozen=True)
class Discrete:
    """The grid 1/steps, 2/steps, ..., 1, each equally likely (Ho et al. 2020, algorithm 1)."""

    steps: int = 1000

    def __call__(self, batch_size: int, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        step = (stratified_uniform(batch_size, device) * self.steps).floor().clamp(max=self.steps - 1) + 1
        return step / self.steps


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) normal with `mean` and `std`: most training in mid-path (Esser et al. 2024, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, batch_size: int, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        u = stratified_uniform(batch_size, device).clamp(1e-6, 1 - 1e-6)
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
