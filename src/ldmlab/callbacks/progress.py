"""How far a run is, how fast, and how long it will take: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from ldmlab.callbacks.budget import Budget


def clock(seconds: float) -> str:
    """Seconds as 1:23:45 or 4:05."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class TrainingProgress(L.Callback):
    """Shows the share of the budget used, the time left, the speed and the loss.

    The time left follows from the share of the budget and the training seconds so far, whichever limit binds.
    """

    def __init__(self, title: str, budget: Budget, console: Console, log_every_seconds: float = 20.0):
        self.title, self.budget, self.console = title, budget, console
        self.log_every_seconds = log_every_seconds
        self._bar: Progress | None = None
        self._shown_at = 0.0

    def _status(self, trainer: L.Trainer) -> str:
        cost, used = self.budget.cost, self.budget.used
        left = clock(cost.seconds * (1 - used) / used) + " left" if used > 0 else "starting"
        speed = f"{cost.images / cost.seconds:.0f} images/s" if cost.seconds else ""
        loss = trainer.callback_metrics.get("train/loss")
        shown = f"loss {loss.item():.4f}" if loss is not None else ""
        return f"{left}  step {cost.steps:.0f}  {speed}  {shown}"

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Opens the bar."""
        if self.console.is_terminal and trainer.is_global_zero:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
                transient=True,
            )
            self._bar.add_task(self.title, total=1.0, status="starting")
            self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Moves the bar, or prints a line when one is due."""
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.budget.used, status=self._status(trainer))
        elif time.monotonic() - self._shown_at > self.log_every_seconds:
            self._shown_at = time.monotonic()
            line = f"{self.title}  {100 * self.budget.used:3.0f} %  {self._status(trainer)}"
            self.console.print(line, soft_wrap=True)

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Closes the bar and says what training took."""
        self._close()
        cost = self.budget.cost
        if trainer.is_global_zero and cost.steps:
            self.console.print(
                f"{self.title}  trained {cost.steps:.0f} steps, {cost.images:,.0f} images in {clock(cost.seconds)} "
                f"({cost.cpu_seconds / 60:.1f} CPU minutes)",
                soft_wrap=True,
            )

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Closes the bar of a training that failed."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
