"""Runs that differ in nothing but a seed: how much of a difference is chance."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar

from ldmlab.tasks.comparison.columns import ABSENT, Column, plus_minus
from ldmlab.tasks.comparison.rows import Row
from ldmlab.tasks.comparison.runs import Run

T = TypeVar("T")

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Recipe:
    """Rows that differ in their seeds alone, or a single one: what a recipe reached with one sampler setting.

    `name` is what its runs are called together.
    """

    rows: list[Row]
    name: str

    @property
    def label(self) -> str:
        """The same with the sampler setting."""
        first = self.rows[0]
        return self.name if first.run.stage == "autoencoder" else f"{self.name} {first.setting}".strip()

    @property
    def labels(self) -> list[str]:
        """What each of its runs is called."""
        return [row.run.label for row in self.rows]

    @property
    def seeds(self) -> str:
        """The seeds, with those of the autoencoders where they differ too."""
        seeds = [row.run.seeds for row in self.rows]
        several_autoencoders = len({autoencoder for _, autoencoder in seeds}) > 1
        return ", ".join(
            f"{own}/{autoencoder}" if several_autoencoders else ABSENT if own is None else str(own)
            for own, autoencoder in seeds
        )

    def values(self, column: Column[Row]) -> list[float]:
        """What a column has for each run, of those in which it was measured."""
        return [value for row in self.rows if (value := column.value(row)) is not None]

    def mean(self, column: Column[Row]) -> float | None:
        """Over the runs in which it was measured; None where that is none, or where one of them is not a number."""
        values = self.values(column)
        return fmean(values) if values and all(map(math.isfinite, values)) else None

    def text(self, column: Column[Row]) -> str:
        """Mean and standard deviation between runs; in how many it was measured where that is not all."""
        values = self.values(column)
        if not values:
            return ABSENT
        if lost := sum(not math.isfinite(value) for value in values):
            return f"not finite ({lost} of {len(self.rows)})"
        told = plus_minus(fmean(values), _deviation(values))
        return told if len(values) == len(self.rows) else f"{told} ({len(values)} of {len(self.rows)})"

    def record(self, columns: Iterable[Column[Row]]) -> dict[str, Any]:
        """The same for comparison.json: nothing rounded, by the headings of the table and in its units."""
        first = self.rows[0]
        return {
            "runs": self.labels,
            "stage": first.run.stage,
            "yardstick": asdict(first.yardstick) if first.yardstick else None,
            "setting": first.setting,
            "seeds": [row.run.seeds for row in self.rows],
            "values": {
                column.heading: {
                    "mean": mean,
                    "standard_deviation": _deviation(values) if len(values) > 1 else None,
                    "runs": len(values),
                }
                for column in averaged(columns)
                if (mean := self.mean(column)) is not None and (values := self.values(column))
            },
        }


def averaged(columns: Iterable[Column[Row]]) -> list[Column[Row]]:
    """The columns of which a mean over seeds is taken: those in which one run can be better than another."""
    return [column for column in columns if column.better]


def recipe_columns(columns: list[Column[Row]]) -> list[Column[Recipe]]:
    """The columns of a table of recipes, made of those of the table of runs."""

    def same_for_all(column: Column[Row]) -> Column[Recipe]:
        return Column(
            column.heading,
            lambda recipe: column.text(recipe.rows[0]),
            meaning=column.meaning,
            secondary=column.secondary,
            numeric=column.numeric,
        )

    def mean(column: Column[Row]) -> Column[Recipe]:
        return Column(
            column.heading,
            lambda recipe: recipe.text(column),
            lambda recipe: recipe.mean(column),
            column.better,
            column.meaning.replace(" ± standard error", ""),
            column.secondary,
        )

    settings = [same_for_all(column) for column in columns if column.heading in ("f", "sampler@steps", "guidance")]
    name = Column[Recipe]("runs of", lambda recipe: recipe.name, numeric=False)
    seeds = Column[Recipe]("seeds", lambda recipe: recipe.seeds, numeric=False)
    return [name, *settings, seeds, *map(mean, averaged(columns))]


def best_recipe(recipes: Iterable[Recipe], quality: Column[Row]) -> Recipe | None:
    """The recipe with the lowest mean."""
    scored = [(mean, recipe) for recipe in recipes if (mean := recipe.mean(quality)) is not None]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def chance(recipes: Sequence[Recipe], quality: Column[Row]) -> str | None:
    """From which recipes the seeds do not tell the best one, by Welch's t-test; None of fewer than two recipes.

    Of each recipe the best of the sampler settings that most of its runs have: settings of one run share what its seed
    did, and are no further evidence.
    """
    found = []
    for settings in _grouped(recipes, lambda recipe: (recipe.rows[0].run.recipe, recipe.rows[0].run.folder.parent)):
        most = max(len(recipe.values(quality)) for recipe in settings)
        best = best_recipe([recipe for recipe in settings if len(recipe.values(quality)) == most], quality)
        found += [best] if best is not None else []
    best = best_recipe(found, quality)
    if best is None or len(found) < 2:
        return None
    if len(best.values(quality)) < 2:
        return f"{best.label} is of one run: whether it is ahead by more than its seed is not known."
    others = [recipe for recipe in found if recipe is not best]
    tested = [recipe for recipe in others if len(recipe.values(quality)) > 1]
    tied = [recipe for recipe in tested if _p_value(best.values(quality), recipe.values(quality)) > SIGNIFICANCE]
    single = [recipe for recipe in others if recipe not in tested]
    told = f"{best.label} is ahead of {_listed(tested)} by more than its seeds" if tested and not tied else ""
    told = f"Its seeds do not tell {best.label} from {_listed(tied)}" if tied else told
    told += f" (Welch's t-test, {SIGNIFICANCE:.0%})" if told else ""
    return ". ".join([*([told] if told else []), *([f"Of one run: {_listed(single)}"] if single else [])]) + "."


def recipes(rows: Iterable[Row]) -> list[Recipe]:
    """Every recipe and sampler setting, in the order of the rows; no row at all where none has several seeds."""

    def order(row: Row) -> list[tuple[bool, int]]:
        return [(seed is None, seed or 0) for seed in row.run.seeds]

    groups = same_but_seed(rows, lambda row: row.run, lambda row: row.detail)
    names = joint_names([[row.run for row in group] for group in groups])
    found = [Recipe(sorted(group, key=order), name) for group, name in zip(groups, names, strict=True)]
    return found if any(len(recipe.rows) > 1 for recipe in found) else []


def same_but_seed(
    items: Iterable[T], run_of: Callable[[T], Run], also: Callable[[T], Hashable] = lambda item: None
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


def joint_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What the runs of each recipe are called together: the first of the shortest names, without its seed.

    With it where two recipes would have one name, as those of two studies.
    """
    shortest = [min((run.label for run in group), key=lambda label: (len(label), label)) for group in groups]
    without = [
        re.sub(r"-(autoencoder\.)?seed-\d+", "", name) if len(group) > 1 else name
        for name, group in zip(shortest, groups, strict=True)
    ]
    # the sampler settings of one recipe share its name
    recipes_of: dict[str, set[str]] = {}
    for name, group in zip(without, groups, strict=True):
        recipes_of.setdefault(name, set()).add(f"{group[0].folder.parent} {group[0].recipe}")
    return [name if len(recipes_of[name]) == 1 else own for name, own in zip(without, shortest, strict=True)]


def _p_value(ours: Sequence[float], theirs: Sequence[float]) -> float:
    from scipy.stats import ttest_ind_from_stats  # takes a second to load, and most comparisons have no seeds

    deviations = _deviation(ours), _deviation(theirs)
    if not any(deviations):
        return float(fmean(ours) == fmean(theirs))
    mine, other = (fmean(ours), deviations[0], len(ours)), (fmean(theirs), deviations[1], len(theirs))
    return float(ttest_ind_from_stats(*mine, *other, equal_var=False).pvalue)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _listed(recipes: Iterable[Recipe]) -> str:
    return ", ".join(recipe.label for recipe in recipes)


def _grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
