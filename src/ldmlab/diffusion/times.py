"""At which times the network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ldmlab.diffusion.schedules import Schedule
from ldmlab.settings import check_types, is_number, is_whole, require


class TimeSampler(Protocol):
    """A distribution of training times."""

    def __call__(self, batch_size: int, schedule: Schedule, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        ...


def stratified_uniform(batch_size: int, device: torch.device) -> Tensor:
    """Uniform draws (B,), one in each of B equal bins: each is uniform, and together they cover [0, 1) evenly.

    The loss varies far more with t than between samples, so this removes most of its variance. After Kingma et al. 2021
    (appendix I.1), who shift all bins by one draw; here each has its own.
    """
    bins = torch.randperm(batch_size, device=device)
    return (bins + torch.rand(batch_size, device=device)) / batch_size


def stratified_normal(batch_size: int, device: torch.device) -> Tensor:
    """Standard normal draws (B,), one in each of B equally likely bins."""
    return torch.special.ndtri(stratified_uniform(batch_size, device).clamp(1e-6, 1 - 1e-6))


def check_normal(times: LogitNormal | LogNormal) -> None:
    """Raises SettingError unless `mean` and `std` are those of a normal distribution."""
    check_types(times)
    require(math.isfinite(times.mean), "mean", "a finite number", times.mean)
    require(0 < times.std < math.inf, "std", "a finite number above 0", times.std)


@dataclass(frozen=True)
class Uniform:
    """Uniform on [smallest, 1]."""

    smallest: float = 1e-3

    def __post_init__(self) -> None:
        check_types(self)
        require(0 < self.smallest < 1, "smallest", "a time between 0 and 1", self.smallest)

    def __call__(self, batch_size: int, schedule: Schedule, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        return self.smallest + (1 - self.smallest) * stratified_uniform(batch_size, device)


@dataclass(frozen=True)
class Discrete:
    """The grid 1/steps, 2/steps, ..., 1, each equally likely (Ho et al. 2020, algorithm 1)."""

    steps: int = 1000

    def __post_init__(self) -> None:
        check_types(self)
        require(self.steps >= 1, "steps", "a whole number of 1 or more", self.steps)

    def __call__(self, batch_size: int, schedule: Schedule, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        step = (stratified_uniform(batch_size, device) * self.steps).floor().clamp(max=self.steps - 1) + 1
        return step / self.steps


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) normal with `mean` and `std`: most training in mid-path (Esser et al. 2024, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_normal(self)

    def __call__(self, batch_size: int, schedule: Schedule, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        return torch.sigmoid(self.mean + self.std * stratified_normal(batch_size, device))


@dataclass(frozen=True)
class Mode:
    """t = 1 - u - scale (cos²(π u / 2) - 1 + u) of uniform u (Esser et al. 2024, eq. 20).

    0 is uniform, above 0 most training is in mid-path, below at the ends, both of which stay possible.
    """

    scale: float = 1.29
    smallest: float = 1e-3

    def __post_init__(self) -> None:
        check_types(self)
        largest = 2 / (math.pi - 2)  # up to here t falls with u
        require(-1 <= self.scale <= largest, "scale", f"a number from -1 to {largest:.3f}", self.scale)
        require(0 < self.smallest < 1, "smallest", "a time between 0 and 1", self.smallest)

    def __call__(self, batch_size: int, schedule: Schedule, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        u = stratified_uniform(batch_size, device)
        t = 1 - u - self.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
        return t.clamp(self.smallest, 1)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) normal with `mean` and `std` (Karras et al. 2022, table 1), within the schedule's range.

    Their mean of -1.2 is for data of deviation 0.5; it is -0.5 for the same ratios of noise to data of deviation 1.
    """

    mean: float = -0.5
    std: float = 1.2

    def __post_init__(self) -> None:
        check_normal(self)

    def __call__(self, batch_size: int, schedule: Schedule, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        nsr = (self.mean + self.std * stratified_normal(batch_size, device)).exp()
        return schedule.time_at(nsr).clamp(schedule.smallest_time, 1)


class ImportanceSampled(nn.Module):
    """Steps of the chain in proportion to sqrt(E[L²]), the loss weighted to match (Nichol and Dhariwal 2021, eq. 18).

    Uniform until every step has been seen `history` times. The losses are in the checkpoint, so a resumed run goes on
    as if it had not been cut off. `uniform_share` of the draws stay uniform, so that no step is forgotten.
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, steps: int = 1000, history: int = 10, uniform_share: float = 1e-3):
        super().__init__()
        for name, value in (("steps", steps), ("history", history)):
            require(is_whole(value) and value >= 1, name, "a whole number of 1 or more", value)
        valid = is_number(uniform_share) and 0 <= uniform_share <= 1
        require(valid, "uniform_share", "a number from 0 to 1", uniform_share)
        self.steps, self.uniform_share = steps, uniform_share
        self.register_buffer("losses", torch.zeros(steps, history))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """The probability of each step 1 ... steps, (steps,)."""
        uniform = torch.full_like(self.losses[:, 0], 1 / self.steps)
        if (self.seen < self.losses.shape[1]).any():
            return uniform
        size = self.losses.square().mean(1).sqrt()
        return (1 - self.uniform_share) * size / size.sum() + self.uniform_share * uniform

    def forward(self, batch_size: int, schedule: Schedule, device: torch.device) -> Tensor:
        """`batch_size` times in (0, 1], float32 (B,)."""
        edges = self.probabilities().cumsum(0)
        step = torch.searchsorted(edges, stratified_uniform(batch_size, device) * edges[-1], right=True)
        return (step.clamp(max=self.steps - 1) + 1) / self.steps

    def weight(self, t: Tensor) -> Tensor:
        """1 / (steps · probability) of times t (B,), which leaves the mean of the loss what it is for uniform times."""
        return 1 / (self.steps * self.probabilities()[self._index(t)])

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remembers the unweighted losses (B,) at times t (B,)."""
        index = self._index(t)
        # a step that was drawn twice in this batch takes one place after the other
        order = (index[:, None] == index).tril(-1).sum(1)
        self.losses[index, (self.seen[index] + order) % self.losses.shape[1]] = losses.detach().float()
        self.seen += torch.bincount(index, minlength=self.steps)

    def _index(self, t: Tensor) -> Tensor:
        return (t * self.steps).round().long() - 1
