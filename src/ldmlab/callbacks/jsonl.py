"""Every logged value as a line of JSON: readable by anything, complete up to the last line when a run is cut off."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from ldmlab.callbacks.budget import Budget


class JsonLines(Logger):
    """Appends {"step", "images", "flops", "seconds", "cpu_seconds", name: value, ...} to `path` for each call.

    The costs are those of `budget` at the time of logging, so that any curve can be drawn over any of them.
    """

    def __init__(self, path: Path, budget: Budget):
        super().__init__()
        self.path, self.budget = path, budget
        self._goes_on = False

    @property
    def name(self) -> str:
        """Lightning's name of this logger."""
        return "jsonl"

    @property
    def version(self) -> str:
        """Unused: one run, one file."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a line; the first time, what a run logged after the checkpoint that it goes on from is dropped."""
        if not self._goes_on:
            self._drop_after(self.budget.before.steps)
            self._goes_on = True
        cost = self.budget.cost
        row: dict[str, Any] = {
            "step": int(cost.steps),
            "images": int(cost.images),
            "flops": cost.flops,
            "seconds": round(cost.seconds, 3),
            "cpu_seconds": round(cost.cpu_seconds, 3),
        }
        row |= {name: float(value) for name, value in metrics.items() if name != "epoch"}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def _drop_after(self, step: float) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if (logged := step_of(line)) is not None and logged <= step]
        if len(kept) < len(lines):
            whole = self.path.with_suffix(".part")
            whole.write_text("".join(kept))
            whole.replace(self.path)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""


def step_of(line: str) -> float | None:
    """The step of a line, None for one that was cut short."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
