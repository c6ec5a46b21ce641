"""Finds runs on disk and reads what they measured."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ldmlab.errors import UserError
from ldmlab.tasks.run import settings_that_count

SUMMARY = "summary.json"
CONFIG = "config.yaml"
COSTS = {
    "CPU minutes": ("cpu_seconds", 60.0),
    "minutes": ("seconds", 60.0),
    "images seen": ("images", 1.0),
    "training steps": ("steps", 1.0),
    "training FLOPs": ("flops", 1.0),
}
"""What training can be measured by: the key of a cost, and how much of it is one."""
NO_RECIPE = ("seed", "autoencoder.seed", "study", "name", "metrics")
"""Settings in which runs of one recipe may differ: seeds, names, and what was measured."""


@dataclass(frozen=True)
class Measurement:
    """One entry of `metrics` in summary.json: `split/quantity@detail`, its value and how it was measured."""

    name: str
    value: float
    standard_error: float | None = None
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The part before the slash: `val`, `speed`."""
        return self.name.partition("/")[0]

    @property
    def quantity(self) -> str:
        """What was measured, for example `kid_lite0_128`."""
        return self.name.partition("/")[2].partition("@")[0]

    @property
    def detail(self) -> str:
        """The sampler setting (`euler20`), `reconstruction`, `real`, or nothing."""
        return self.name.partition("@")[2]

    @property
    def samples(self) -> int | None:
        """Number of images that the value was computed from, where the manifest says so."""
        return self.manifest.get("samples")


@dataclass(frozen=True)
class Run:
    """A finished run: summary.json, and the folder that it came from.

    `label` is what tables and plots call the run: its name, or its folder where two runs share a name.
    """

    folder: Path
    label: str
    study: str
    stage: str
    seed: int | None
    choices: dict[str, Any]
    data: dict[str, Any]
    cost: dict[str, float]
    cost_autoencoder: dict[str, float] | None
    autoencoder_from: str | None
    parameters: dict[str, int]
    measurements: dict[str, Measurement]
    samples: str | None
    versions: dict[str, Any]
    git: str | None

    @property
    def factor(self) -> int | None:
        """The downsampling factor: 4 for `f4`."""
        digits = str(self.choices.get("downsampling", "")).removeprefix("f")
        return int(digits) if digits.isdigit() else None

    @cached_property
    def recipe(self) -> str:
        """What the run shares with those that differ from it in their seeds alone; its folder where that is unknown."""
        if self.config is None:
            return str(self.folder)
        return json.dumps(settings_that_count(self.config, NO_RECIPE), sort_keys=True, default=str)

    @property
    def seeds(self) -> tuple[int | None, int | None]:
        """The run's own seed, and that of the autoencoder that a diffusion model stands on."""
        autoencoder = (self.config or {}).get("autoencoder")
        stands_on_one = self.stage == "diffusion" and self.factor != 1 and isinstance(autoencoder, dict)
        return self.seed, autoencoder.get("seed") if stands_on_one and autoencoder else None

    @property
    def autoencoder_cost_unknown(self) -> bool:
        """Whether the run stands on an autoencoder whose training is not in the books."""
        return self.stage == "diffusion" and self.autoencoder_from is not None and self.cost_autoencoder is None

    def total_cost(self, key: str) -> float | None:
        """The run's own cost plus that of the autoencoder that it stands on; `key` as in `cost`."""
        own = self.cost.get(key)
        return None if own is None else own + self._cost_before(key)

    def _cost_before(self, key: str) -> float:
        return (self.cost_autoencoder or {}).get(key) or 0.0

    def total(self, name: str) -> float | None:
        """The same in the unit of one of `COSTS`."""
        key, unit = COSTS[name]
        total = self.total_cost(key)
        return None if total is None else total / unit

    def cost_then(self, entry: dict[str, Any], name: str) -> float | None:
        """What the run had cost when a line of its history was written, the autoencoder's training included."""
        key, unit = COSTS[name]
        own = entry.get("step" if key == "steps" else key)
        if not isinstance(own, int | float) or not math.isfinite(own):
            return None
        return (own + self._cost_before(key)) / unit

    def measured(self, quantity: str, detail: str | None = None) -> Measurement | None:
        """The first measurement of `quantity`, for any detail unless one is asked for."""
        for measurement in self.measurements.values():
            if measurement.quantity == quantity and detail in (None, measurement.detail):
                return measurement
        return None

    def measured_like(self, beginning: str) -> Measurement | None:
        """The first measurement of the finished run whose quantity begins so."""
        found = (m for m in self.measurements.values() if m.quantity.startswith(beginning) and not m.detail)
        return next(found, None)

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """The resolved configuration, None where it cannot be read."""
        try:
            config = yaml.safe_load(self.config_text() or "")
        except yaml.YAMLError:
            return None
        return config if isinstance(config, dict) else None

    def config_text(self) -> str | None:
        """The resolved configuration, as written."""
        path = self.folder / CONFIG
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def command(self) -> str | None:
        """The command line that made the run, from overrides.yaml."""
        try:
            record = yaml.safe_load((self.folder / "overrides.yaml").read_text(encoding="utf-8"))
            return shlex.join(["ldmlab", record["command"], *map(str, record.get("overrides") or [])])
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            return None  # the record is a convenience; the resolved configuration stands beside it

    def history(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl. The last may be cut short where a run was killed: such lines are skipped."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(entry, dict):
                    yield entry

    def sample_grid(self) -> Path | None:
        """The grid that the summary names, or else the last one of training."""
        if self.samples and (self.folder / self.samples).is_file():
            return self.folder / self.samples
        grids = [p for p in self.folder.glob("samples/*.png") if not p.name.startswith("reconstructions")]
        return max(grids, default=None)

    def reconstruction_grid(self) -> Path | None:
        """The last grid of reconstructions, by name."""
        return max(self.folder.glob("samples/reconstructions*.png"), default=None)


@dataclass(frozen=True)
class Remark:
    """A run that is not compared, and the reason."""

    folder: Path
    label: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """Everything found below the given paths; `root` is the folder that the runs have in common."""

    root: Path
    runs: list[Run]
    unfinished: list[Remark]
    unreadable: list[Remark]
    empty: list[Path]

    @property
    def title(self) -> str:
        """The studies that were compared."""
        return ", ".join(sorted({run.study for run in self.runs}))


def find_runs(paths: Sequence[Path]) -> Findings:
    """Read every run below `paths`, each of which is a run, a study or a folder of studies.

    Raises:
        UserError: a path does not exist, or there is no finished run below any of them.
    """
    folders: dict[Path, Path] = {}  # by resolved path, so that a run given twice counts once
    empty = []
    for path in paths:
        if not path.exists():
            raise UserError(f"no such folder: {path}: give a run, a study or the folder of all runs")
        below = list(_run_folders(path))
        if not below and path.is_dir():
            empty.append(path)
        folders.update((folder.resolve(), Path(os.path.abspath(folder))) for folder in below)
    root = Path(os.path.commonpath([folder.parent for folder in folders.values()])) if folders else Path()

    runs, unfinished, unreadable = [], [], []
    for folder in folders.values():
        label = folder.relative_to(root).as_posix()
        if not (folder / SUMMARY).is_file():
            unfinished.append(Remark(folder, label, f"{CONFIG} but no {SUMMARY}: still running, or stopped early"))
            continue
        try:
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            if (status := summary["status"]) != "complete":
                unfinished.append(Remark(folder, label, f"status: {status}"))
            else:
                runs.append(_run(folder, summary))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            unreadable.append(Remark(folder, label, f"cannot read {SUMMARY}: {_reason(error)}"))

    if not runs:
        raise UserError(_nothing_to_compare(paths, unfinished, unreadable))
    return Findings(root, _with_unique_labels(runs, root), unfinished, unreadable, empty)


def _run_folders(path: Path) -> Iterator[Path]:
    if path.is_file():
        # `ldmlab compare runs/demo/*` also names last time's comparison.html: files other than a summary are no runs
        if path.name == SUMMARY:
            yield path.parent
        return
    for parent, children, files in os.walk(path):
        if SUMMARY in files or CONFIG in files:
            yield Path(parent)
            children.clear()  # what lies inside a run (wandb, .hydra) has a config.yaml of its own
        children[:] = sorted(name for name in children if not name.startswith(".") and name != "wandb")


def _run(folder: Path, summary: dict[str, Any]) -> Run:
    if summary["stage"] not in ("diffusion", "autoencoder"):
        raise ValueError(f"unknown stage {summary['stage']!r}")
    measurements = {
        name: Measurement(name, _number(entry["value"]), entry.get("standard_error"), entry.get("manifest") or {})
        for name, entry in summary["metrics"].items()
    }
    return Run(
        folder=folder,
        label=str(summary["name"]),
        study=str(summary["study"]),
        stage=summary["stage"],
        seed=summary.get("seed"),
        choices=dict(summary.get("choices") or {}),
        data=dict(summary["data"]),
        cost=dict(summary["cost"]),
        cost_autoencoder=summary.get("cost_autoencoder"),
        autoencoder_from=summary.get("autoencoder_from"),
        parameters=dict(summary.get("parameters") or {}),
        measurements=measurements,
        samples=summary.get("samples"),
        versions=dict(summary.get("versions") or {}),
        git=summary.get("git"),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)  # JSON proper has no NaN: writers put null


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _with_unique_labels(runs: list[Run], root: Path) -> list[Run]:
    times_used = Counter(run.label for run in runs)
    return [
        replace(run, label=run.folder.relative_to(root).as_posix()) if times_used[run.label] > 1 else run
        for run in runs
    ]


def _nothing_to_compare(paths: Sequence[Path], unfinished: list[Remark], unreadable: list[Remark]) -> str:
    message = f"no finished run below {', '.join(map(str, paths))}: `ldmlab train-ldm` makes one"
    others = [f"{remark.label} ({remark.reason})" for remark in (*unfinished, *unreadable)]
    return f"{message}; found only {'; '.join(others)}" if others else message
