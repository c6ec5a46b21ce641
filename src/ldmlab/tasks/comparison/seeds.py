"""Runs that differ in nothing but a seed: how much of a difference is chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev, variance
from typing import Any, TypeVar

from ldmlab.tasks.comparison.columns import ABSENT, Column, number, plus_minus
from ldmlab.tasks.comparison.rows import Row
from ldmlab.tasks.comparison.runs import Run

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """Rows that differ in their seeds alone, or a single one: what a recipe reached with one sampler setting."""

    rows: list[Row]

    @property
    def name(self) -> str:
        """What its runs are called together."""
        return shortest_name(row.run for row in self.rows)

    @property
    def label(self) -> str:
        """The same with the sampler setting."""
        return min((row.label for row in self.rows), key=len)

    @property
    def labels(self) -> list[str]:
        """What each of its runs is called."""
        return [row.run.label for row in self.rows]

    @property
    def seeds(self) -> str:
        """The seeds, with those of the autoencoders where they differ too."""
        seeds = [row.run.seeds for row in self.rows]
        several_autoencoders = len({autoencoder for _, autoencoder in seeds}) > 1
        told = (f"{own}/{autoencoder}" if several_autoencoders else str(own) for own, autoencoder in seeds)
        return ", ".join(told)

    def values(self, column: Column[Row]) -> list[float]:
        """What a column has for each run, of those that have it."""
        found = (column.value(row) for row in self.rows)
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, column: Column[Row]) -> float | None:
        """Over the runs that have a value; None where none has."""
        values = self.values(column)
        return fmean(values) if values else None

    def text(self, column: Column[Row]) -> str:
        """Mean and standard deviation between runs, and how many they are where some have no value."""
        values = self.values(column)
        if not values:
            return ABSENT
        told = plus_minus(fmean(values), stdev(values)) if len(values) > 1 else number(values[0])
        return told if len(values) == len(self.rows) else f"{told} ({len(values)} of {len(self.rows)})"

    def record(self, columns: Iterable[Column[Row]]) -> dict[str, Any]:
        """The same for comparison.json: plain values, nothing rounded."""
        first = self.rows[0]
        return {
            "runs": self.labels,
            "stage": first.run.stage,
            "yardstick": asdict(first.yardstick) if first.yardstick else None,
            "setting": first.setting,
            "seeds": [row.run.seeds for row in self.rows],
            "values": {
                column.heading: {"mean": fmean(values), "standard_deviation": deviation(values), "runs": len(values)}
                for column in averaged(columns)
                if (values := self.values(column))
            },
        }


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation between runs; None of a single one."""
    return stdev(values) if len(values) > 1 else None


def averaged(columns: Iterable[Column[Row]]) -> list[Column[Row]]:
    """The columns of which a mean over seeds is taken: those in which one run can be better than another."""
    return [column for column in columns if column.better]


def recipe_columns(columns: list[Column[Row]]) -> list[Column[Recipe]]:
    """The columns of a table of recipes, made of those of the table of runs."""

    def same_for_all(column: Column[Row]) -> Column[Recipe]:
        return Column(
            column.heading,
            lambda recipe: column.text(recipe.rows[0]),
            secondary=column.secondary,
            numeric=column.numeric,
        )

    def mean(column: Column[Row]) -> Column[Recipe]:
        return Column(
            column.heading,
            lambda recipe: recipe.text(column),
            lambda recipe: recipe.mean(column),
            column.better,
            f"{column.meaning} Here the mean of runs ± the standard deviation between them.",
            column.secondary,
        )

    settings = [same_for_all(column) for column in columns if column.heading in ("f", "sampler@steps", "guidance")]
    name = Column[Recipe]("runs of", lambda recipe: recipe.name, numeric=False)
    seeds = Column[Recipe]("seeds", lambda recipe: recipe.seeds, numeric=False)
    return [name, *settings, seeds, *map(mean, averaged(columns))]


def chance(recipes: Sequence[Recipe], quality: Column[Row]) -> str | None:
    """How far seeds alone move the quality, and which recipes the best one does not beat by more than that.

    The deviation is pooled over recipes, as each has few runs; None where no recipe has two.
    """
    found = [(recipe, values) for recipe in recipes if (values := recipe.values(quality))]
    freedom = sum(len(values) - 1 for _, values in found)
    if not freedom:
        return None
    pooled = math.sqrt(sum((len(values) - 1) * variance(values) for _, values in found if len(values) > 1) / freedom)
    best, top = min(found, key=lambda pair: fmean(pair[1]))
    tied = [
        recipe.label
        for recipe, values in found
        if recipe is not best and fmean(values) - fmean(top) <= 2 * pooled * math.sqrt(1 / len(values) + 1 / len(top))
    ]
    told = f"From seed to seed {quality.heading} differs by {number(pooled)} (standard deviation, pooled)"
    return f"{told}; within two standard errors of the best mean: {', '.join(tied) or 'none'}."


def recipes(rows: Iterable[Row]) -> list[Recipe]:
    """Every recipe and sampler setting, in the order of the rows; no row at all where none has several seeds."""
    groups = same_but_seed(rows, lambda row: row.run, lambda row: row.detail)
    found = [Recipe(sorted(group, key=lambda row: str(row.run.seeds))) for group in groups]
    return found if any(len(recipe.rows) > 1 for recipe in found) else []


def same_but_seed(
    items: Iterable[T], run_of: Callable[[T], Run], also: Callable[[T], object] = lambda item: None
) -> list[list[T]]:
    """Items in groups, in their order, whose runs differ in nothing but their seeds, and which share `also`.

    Where a seed comes twice, as in two studies on two revisions, each study has its own group; and each run where it
    comes twice in a study.
    """

    def no_seed_twice(group: list[T]) -> bool:
        return len({run_of(item).seeds for item in group}) == len(group)

    found = []
    for group in _grouped(items, lambda item: (run_of(item).recipe, also(item))):
        for part in [group] if no_seed_twice(group) else _grouped(group, lambda item: run_of(item).folder.parent):
            found += [part] if no_seed_twice(part) else [[item] for item in part]
    return found


def shortest_name(runs: Iterable[Run]) -> str:
    """What runs of one recipe are called together: `ldm-f4`, of which another is `ldm-f4-seed-1`."""
    return min((run.label for run in runs), key=len)


def _grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
