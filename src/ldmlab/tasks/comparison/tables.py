"""Tables of the comparison: groups of comparable rows, their columns, the best values and the caveats.

The terminal, the Markdown file and the page all show these tables; none of them decides what is comparable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Generic, TypeVar

from ldmlab.tasks.comparison.columns import Column, autoencoder_columns, diffusion_columns, distance
from ldmlab.tasks.comparison.rows import (
    NAMES,
    Headline,
    Row,
    Yardstick,
    best_row,
    headline_of,
    rows_of,
    sort_rows,
)
from ldmlab.tasks.comparison.runs import Run
from ldmlab.tasks.comparison.seeds import Recipe, best_recipe, chance, recipe_columns, recipes

T = TypeVar("T")

CONDITIONS = ("device", "threads", "dtype", "torch")
"""Keys of a speed manifest that make two speeds incomparable when they differ."""


@dataclass(frozen=True)
class Cell:
    """What a table shows at one place."""

    text: str
    best: bool
    numeric: bool


@dataclass(frozen=True)
class Sheet(Generic[T]):
    """Rows and columns, and what the values and their errors are where that needs to be said."""

    rows: list[T]
    columns: list[Column[T]]
    headline: Headline | None
    caption: str

    @property
    def quality_column(self) -> int | None:
        """The place of the column that says which row is best."""
        headings = [column.heading for column in self.columns]
        start = ("FD", "FID") if self.headline == "frechet" else ("KID",)
        return next((place for place, heading in enumerate(headings) if heading.startswith(start)), None)

    def cells(self) -> list[list[Cell]]:
        """The table's text, row by row."""
        best = [column.best(self.rows) for column in self.columns]
        return [
            [
                Cell(column.text(row), top is not None and column.value(row) == top, column.numeric)
                for column, top in zip(self.columns, best, strict=True)
            ]
            for row in self.rows
        ]


@dataclass(frozen=True)
class Table(Sheet[Row]):
    """Rows on one yardstick, sorted by factor and quality.

    `over_seeds` has the means of runs that differ in their seeds alone, and no row where there are none.
    """

    stage: str
    yardstick: Yardstick | None
    over_seeds: Sheet[Recipe]

    @property
    def title(self) -> str:
        """What the distances were measured with."""
        return str(self.yardstick) if self.yardstick else "no distance measured"

    @property
    def sheets(self) -> list[Sheet[Any]]:
        """What there is to show: the means where there are any, and the runs."""
        return [self.over_seeds, self] if self.over_seeds.rows else [self]

    @property
    def quality(self) -> Column[Row] | None:
        """The column that says which row is best."""
        return None if self.quality_column is None else self.columns[self.quality_column]

    @property
    def best(self) -> str:
        """Which row has the lowest distance, in a sentence; where there are seeds, which has the lowest mean."""
        if self.headline is None or self.quality is None or len(self.rows) < 2:
            return ""
        if recipe := best_recipe(self.over_seeds.rows, self.quality):
            runs = "" if len(recipe.values(self.quality)) > 1 else " (of one run)"
            return f"Lowest mean {self.quality.heading}: {recipe.label}, {recipe.text(self.quality)}{runs}."
        best = best_row(self.rows, self.headline)
        if best is None:
            return ""
        return f"Lowest {NAMES[self.headline]}: {best.label}, {distance(best.quality(self.headline), self.headline)}."

    @cached_property
    def notes(self) -> list[str]:
        """What a reader has to know who compares the rows."""
        found = []
        sizes = {row.frechet.samples for row in self.rows if row.frechet}
        if len(sizes) > 1:
            listed = ", ".join(str(size or "unknown") for size in sorted(sizes, key=lambda size: size or 0))
            found.append(f"Fréchet distances are not comparable (N differs: {listed}): each N has its own column.")
        if told := chance(self.over_seeds.rows, self.quality) if self.quality else None:
            found.append(told)
        elif tied := _within_error(self.rows, self.headline):
            found.append(f"Within two standard errors of the best: {', '.join(tied)}.")
        conditions = {
            key: sorted({str(m.manifest[key]) for m in speeds if key in m.manifest})
            for key in CONDITIONS
            if (speeds := [m for row in self.rows if (m := row.run.measured("images_per_s", row.detail))])
        }
        if differing := [f"{key}: {', '.join(values)}" for key, values in conditions.items() if len(values) > 1]:
            found.append(f"Speeds are not comparable ({'; '.join(differing)} differ).")
        if unknown := sorted({row.run.label for row in self.rows if row.run.autoencoder_cost_unknown}):
            found.append(f"CPU minutes leave out an autoencoder whose cost is not recorded: {', '.join(unknown)}.")
        return found


@dataclass(frozen=True)
class DataGroup:
    """All runs on one data set. Runs on different data are never in one table."""

    name: str
    image_size: int | None
    fingerprint: str | None
    diffusion: list[Table]
    autoencoders: list[Table]
    notes: list[str]

    @property
    def title(self) -> str:
        """The data set, its image size, and the start of its fingerprint: two versions of a set share the name."""
        size = f", {self.image_size} px" if self.image_size else ""
        return f"{self.name}{size}" + (f" (data {self.fingerprint[:8]})" if self.fingerprint else "")

    def runs(self, stage: str) -> list[Run]:
        """The runs of one stage, each once, in the order of the tables."""
        tables = self.diffusion if stage == "diffusion" else self.autoencoders
        return list({row.run.folder: row.run for table in tables for row in table.rows}.values())


def group_by_data(runs: Iterable[Run]) -> list[DataGroup]:
    """Tables for every data set among the runs."""
    by_data: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        by_data.setdefault(tuple(run.data.get(key) for key in ("name", "image_size", "fingerprint")), []).append(run)
    groups = []
    for (name, image_size, fingerprint), members in sorted(by_data.items(), key=lambda item: str(item[0])):
        diffusion, autoencoders = (_tables(stage, members) for stage in ("diffusion", "autoencoder"))
        notes = [
            f"The tables of {what} are not comparable with each other ({differences})."
            for what, tables in (("diffusion models", diffusion), ("autoencoders", autoencoders))
            if (differences := _yardstick_differences(tables))
        ]
        groups.append(DataGroup(str(name), image_size, fingerprint, diffusion, autoencoders, notes))
    return groups


def all_runs(groups: Iterable[DataGroup]) -> list[Run]:
    """Every run of some groups once: of each data set the diffusion models, then the autoencoders."""
    return [run for group in groups for stage in ("diffusion", "autoencoder") for run in group.runs(stage)]


def _tables(stage: str, runs: Iterable[Run]) -> list[Table]:
    by_yardstick: dict[Yardstick | None, list[Row]] = {}
    for run in runs:
        if run.stage == stage:
            for row in rows_of(run):
                by_yardstick.setdefault(row.yardstick, []).append(row)
    tables = []
    for yardstick, unsorted in by_yardstick.items():
        headline = headline_of(unsorted)
        rows = sort_rows(unsorted, headline)
        columns = diffusion_columns(rows, headline) if stage == "diffusion" else autoencoder_columns(rows)
        means = Sheet(recipes(rows), recipe_columns(columns), headline, "Means, ± the deviation from seed to seed")
        caption = "Runs, ± the standard error of measuring" if means.rows else ""
        tables.append(Table(rows, columns, headline, caption, stage, yardstick, means))
    # the table with the most rows is what a study is about; what was not measured comes last
    return sorted(tables, key=lambda table: (table.yardstick is None, -len(table.rows)))


def _within_error(rows: list[Row], headline: Headline | None) -> list[str]:
    """Rows that the best one does not beat by more than chance."""
    best = best_row(rows, headline)
    top = best.quality(headline) if best else None
    if top is None or top.standard_error is None:
        return []
    tied = []
    for row in rows:
        quality = row.quality(headline)
        if row is best or quality is None or quality.standard_error is None:
            continue
        if quality.value - top.value < 2 * math.hypot(top.standard_error, quality.standard_error):
            tied.append(row.label)
    return tied


def _yardstick_differences(tables: list[Table]) -> str:
    sticks = [table.yardstick for table in tables if table.yardstick]
    values = {f.name: dict.fromkeys(str(getattr(stick, f.name)) for stick in sticks) for f in fields(Yardstick)}
    return "; ".join(f"{name.replace('_', ' ')}: {', '.join(v)}" for name, v in values.items() if len(v) > 1)
