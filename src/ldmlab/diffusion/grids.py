"""Time grids: at which times of the path a sampler asks the network.

A grid gives `steps` + 1 falling times, the last of them 0, for any schedule: where a paper spaces noise levels, those
are ratios sigma / alpha, which every path has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldmlab.diffusion.schedules import Schedule, shifted
from ldmlab.settings import check_types, require


class Grid(Protocol):
    """A choice of times."""

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times in [0, 1], float64, the last of them 0."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Equally spaced from 1 to 0."""

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times in [0, 1], float64, the last of them 0."""
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Trailing:
    """Equally spaced from 1, rounded to the steps of the chain (Lin et al. 2023, table 2).

    A discrete model is then asked only about times that it was trained at. Without a chain, or with more steps than it
    has, `Uniform`.
    """

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times in [0, 1], float64, the last of them 0."""
        times = Uniform()(steps, schedule)
        if schedule.chain is None or steps > schedule.chain:
            return times
        return (times * schedule.chain).round() / schedule.chain


@dataclass(frozen=True)
class Leading:
    """Every (chain / steps)-th step of the chain from the first (DDPM's and DDIM's code; Lin et al. 2023, table 2).

    Starts below t = 1 and is here for comparison: with few steps pure noise is taken for a sample that is half done.
    `offset` moves all times but the last by so many steps of the chain; Stable Diffusion has 1.
    """

    offset: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.offset >= 0, "offset", "a whole number of 0 or more", self.offset)

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times in [0, 1], float64, the last of them 0."""
        chain = schedule.chain or 1000
        if steps > chain:
            raise ValueError(f"leading has no {steps} times on a chain of {chain} steps; use uniform")
        first = torch.arange(steps, dtype=torch.float64) * (chain // steps) + 1 + self.offset
        return torch.cat([first.clamp(max=chain).flip(0) / chain, torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class Quadratic:
    """t = (i / steps)²: more times near the data (Song et al. 2020, appendix D.2, for CIFAR-10)."""

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times in [0, 1], float64, the last of them 0."""
        return Uniform()(steps, schedule) ** 2


@dataclass(frozen=True)
class Karras:
    """(sigma / alpha)^(1/rho) equally spaced from largest to smallest, then 0 (Karras et al. 2022, eq. 5).

    Higher `rho`: more times near the data.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        check_types(self)
        require(0 < self.rho < math.inf, "rho", "a finite number above 0", self.rho)

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times in [0, 1], float64, the last of them 0."""
        largest, smallest = noise_range(schedule)
        ramp = torch.linspace(1, 0, steps, dtype=torch.float64)
        low, high = smallest ** (1 / self.rho), largest ** (1 / self.rho)
        return through((low + ramp * (high - low)) ** self.rho, schedule)


@dataclass(frozen=True)
class LogSNR:
    """log(alpha / sigma) equally spaced from smallest to largest, then infinite (Lu et al. 2022, section 3.3)."""

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times in [0, 1], float64, the last of them 0."""
        largest, smallest = noise_range(schedule)
        return through(torch.logspace(0, 1, steps, base=smallest / largest, dtype=torch.float64) * largest, schedule)


@dataclass(frozen=True)
class FlowShifted:
    """shift · t / (1 + (shift - 1) t) of equally spaced t (Esser et al. 2024, eq. 23); above 1: more near noise."""

    shift: float = 3.0

    def __post_init__(self) -> None:
        check_types(self)
        require(0 < self.shift < math.inf, "shift", "a finite number above 0", self.shift)

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times in [0, 1], float64, the last of them 0."""
        return shifted(Uniform()(steps, schedule), self.shift)


def noise_range(schedule: Schedule) -> tuple[float, float]:
    """The largest and the smallest sigma / alpha that a network is asked about; of two infinite ends, the one before.

    Where nothing of the data is left at t = 1, the ratio is infinite there and is taken at t = 1 - `smallest_time`.
    """
    start = 1 - schedule.smallest_time if schedule.ends_in_noise else 1.0
    alpha, sigma = schedule.coefficients(torch.tensor([start, schedule.smallest_time], dtype=torch.float64))
    largest, smallest = (sigma / alpha).tolist()
    return largest, smallest


def through(ratios: Tensor, schedule: Schedule) -> Tensor:
    """The times of falling ratios sigma / alpha and then 0; the first of them is where the path starts, 1."""
    times = schedule.time_at(ratios)
    times[0] = 1.0
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


GRIDS: dict[str, Grid] = {
    "uniform": Uniform(),
    "trailing": Trailing(),
    "leading": Leading(),
    "quadratic": Quadratic(),
    "karras": Karras(),
    "logsnr": LogSNR(),
    "flow_shifted": FlowShifted(),
}
"""The time grids by the name that a config gives them; others are `_target_` nodes with settings of their own."""


def grid_named(grid: str | Grid, schedule: Schedule) -> Grid:
    """The grid that a sampler's setting means: a grid, the name of one, or "auto", the one usual for the schedule."""
    if not isinstance(grid, str):
        return grid
    return GRIDS[schedule.grid if grid == "auto" else grid]
