"""How long a run may last, what it has cost so far, and the learning rate that follows from both."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch

from ldmlab import processes
from ldmlab.metrics.speed import count_flops
from ldmlab.types import Batch


@dataclass
class Cost:
    """What training took: optimiser steps, images seen, floating-point operations, wall and CPU seconds.

    Time covers training only: not the start-up, not sample grids, not measuring. Of several processes, CPU seconds are
    added up, and wall seconds are their mean.
    """

    steps: float = 0
    images: float = 0
    flops: float = 0
    seconds: float = 0
    cpu_seconds: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Limits:
    """The largest cost a run may have; the first limit reached ends it. None is no limit."""

    steps: float | None = None
    images: float | None = None
    flops: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None

    def used(self, cost: Cost) -> float:
        """The share of the budget that `cost` uses: 0 at the start, 1 where the first limit is reached."""
        limits = {name: limit for name, limit in asdict(self).items() if limit is not None}
        return max((getattr(cost, name) / limit for name, limit in limits.items()), default=0.0)

    def less(self, cost: Cost) -> Limits:
        """What is left of the limits once `cost` is paid."""
        left = {name: limit - getattr(cost, name) for name, limit in asdict(self).items() if limit is not None}
        return Limits(**left)

    def share(self, part: float) -> Limits:
        """`part` of every limit."""
        return Limits(**{name: limit * part for name, limit in asdict(self).items() if limit is not None})


class Stopwatch:
    """Wall and CPU seconds of this process while running; `paused` leaves out what is not training."""

    def __init__(self) -> None:
        self._started: tuple[float, float] | None = None
        self.seconds = 0.0
        self.cpu_seconds = 0.0

    @property
    def cost(self) -> dict[str, float]:
        """Both, by name, up to the last stop or lap."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def start(self) -> None:
        """Runs from now on."""
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stands still from now on."""
        if self._started is not None:
            wall, cpu = self._started
            self.seconds += time.perf_counter() - wall
            self.cpu_seconds += time.process_time() - cpu
            self._started = None

    def lap(self) -> None:
        """Brings `seconds` and `cpu_seconds` up to date."""
        if self._started is not None:
            self.stop()
            self.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stands still within the block."""
        running = self._started is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()


class Budget(L.Callback):
    """Ends training at the first limit reached, sets the learning rate by the share of the budget used, counts costs.

    The rate rises linearly over `warmup_steps` and, with `decay`, falls to zero along a half cosine over the whole
    budget, whichever its unit: a run bounded by seconds is annealed as well as one bounded by steps. `before` is what
    the run has cost before its first step.
    """

    def __init__(self, limits: Limits, warmup_steps: int, decay: bool, before: Cost | None = None):
        self.limits, self.warmup_steps, self.decay = limits, warmup_steps, decay
        self.cost = self.before = before or Cost()  # of a run that goes on, what it cost up to there
        self._used_before = limits.used(self.cost)
        self.watch = Stopwatch()
        self.measuring = Stopwatch()  # of this process alone
        self._flops_per_step: dict[str, float] = {}  # of each phase of training; most modules have one
        self._phase = ""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The clock of training stands still within the block, that of measuring and of pictures runs."""
        with self.watch.paused():
            self.measuring.start()
            try:
                yield
            finally:
                self.measuring.stop()

    @property
    def used(self) -> float:
        """The share used of what the budget leaves for training, 0 to 1."""
        return min((self.limits.used(self.cost) - self._used_before) / (1 - self._used_before), 1.0)

    def rate_factor(self) -> float:
        """The factor on the optimiser's learning rate at the next step."""
        warmup = min(1.0, (self.cost.steps + 1) / max(self.warmup_steps, 1))
        return warmup * (0.5 * (1 + math.cos(math.pi * self.used)) if self.decay else 1.0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Starts the clock; a run whose budget is spent already takes no further step."""
        if self.used >= 1:
            trainer.should_stop = True
        self.watch.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Batch, batch_index: int
    ) -> None:
        """Sets the learning rate; before the first step of a phase counts its floating-point operations."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * self.rate_factor()
        self._phase = getattr(module, "phase", "")
        if self._phase not in self._flops_per_step:
            with self.watch.paused():
                self._flops_per_step[self._phase] = step_flops(module, batch) * trainer.world_size

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        """Adds up the cost and stops at a limit."""
        images = batch["image"] if "image" in batch else batch["latent_mean"]
        self.watch.lap()
        # known to all, so that all have the same learning rate and stop at the same step
        spent = processes.gather_numbers([self.watch.seconds, self.watch.cpu_seconds])
        stepped = trainer.global_step > self.cost.steps
        self.cost = Cost(
            steps=trainer.global_step,
            images=self.cost.images + len(images) * trainer.world_size,
            flops=self.cost.flops + self._flops_per_step[self._phase],
            seconds=self.before.seconds + spent[:, 0].mean().item(),
            cpu_seconds=self.before.cpu_seconds + spent[:, 1].sum().item(),
        )
        if self.used >= 1 and stepped:  # within an accumulation of gradients there is nothing to save
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stops the clock."""
        self.watch.stop()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {
            "cost": asdict(self.cost),
            "flops_per_step": self._flops_per_step,
            "measuring": self.measuring.cost,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.cost = self.before = Cost(**state["cost"])
        self._flops_per_step = state["flops_per_step"]
        self.measuring.seconds = state["measuring"]["seconds"]
        self.measuring.cpu_seconds = state["measuring"]["cpu_seconds"]


def step_flops(module: Any, batch: Batch) -> float:
    """Floating-point operations of one forward and backward pass of `module.loss(batch)`; leaves no trace.

    Of whole images: training that makes some of them smaller (`equivariance`) takes fewer.
    """
    before = [buffer.clone() for buffer in module.buffers()]
    accumulated = [(parameter, parameter.grad) for parameter in module.parameters()]
    module.zero_grad(set_to_none=True)
    with torch.random.fork_rng():
        flops = count_flops(lambda: module.loss(batch).backward())
    for parameter, gradient in accumulated:
        parameter.grad = gradient
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)
    return float(flops)
