"""Grids of samples and reconstructions over training, always of the same noise and the same images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchvision.utils import save_image

from ldmlab.callbacks.budget import Budget


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Images (B, 3, H, W) in [-1, 1] as a PNG grid of `columns` columns; small ones are doubled to be seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if images.shape[-1] <= 32:
        images = images.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    save_image((images.cpu() + 1) / 2, path, nrow=columns, padding=2, pad_value=1.0)


class AtMilestones(L.Callback):
    """Calls `action(trainer, module)` at `count` equally spaced shares of the budget, the clock standing still.

    Also after every `every_steps` optimiser steps, unless that is None.
    """

    def __init__(
        self,
        name: str,
        budget: Budget,
        count: int,
        action: Callable[[L.Trainer, L.LightningModule], None],
        every_steps: int | None = None,
    ):
        self.name, self.budget, self.count, self.action = name, budget, count, action
        self.every_steps = every_steps
        self._reached = 0
        self._last_step = 0

    @property
    def state_key(self) -> str:
        """The name under which a checkpoint keeps this callback's state."""
        return f"AtMilestones[{self.name}]"

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        """Acts when another milestone has been passed; the end is not one, there the run measures in full."""
        reached = int(self.budget.used * (self.count + 1) + 1e-9)
        due = self._reached < reached <= self.count
        if self.every_steps and self.budget.used < 1:
            due |= trainer.global_step >= self._last_step + self.every_steps
        if due:
            self._last_step = trainer.global_step
            with self.budget.aside():
                self.action(trainer, module)
        self._reached = max(self._reached, reached)

    def state_dict(self) -> dict[str, Any]:
        """The milestones passed."""
        return {"reached": self._reached, "last_step": self._last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after the milestones passed."""
        self._reached, self._last_step = state["reached"], state["last_step"]


def log_picture(trainer: L.Trainer, name: str, path: Path) -> None:
    """A saved PNG to wandb, where wandb is on."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key=name, images=[str(path)])
