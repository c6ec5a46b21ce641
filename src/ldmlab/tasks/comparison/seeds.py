"""Rows that differ in nothing but a seed: how much of a difference is chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar

from ldmlab.tasks.comparison.rows import Headline, Row

T = TypeVar("T")


@dataclass(frozen=True)
class OverSeeds:
    """What one recipe reached at several seeds: means, and standard deviations between its runs."""

    rows: list[Row]

    @property
    def label(self) -> str:
        """The run of the shortest name, and the seeds."""
        shortest = min((row.label for row in self.rows), key=len)
        return f"{shortest} over seeds {', '.join(str(row.run.seed) for row in self.rows)}"

    def of(self, headline: Headline) -> tuple[float, float] | None:
        """Mean and standard deviation of a distance; None unless all rows have it, from as many images."""
        found = [row.quality(headline) for row in self.rows]
        values = [m.value for m in found if m is not None and math.isfinite(m.value)]
        if len(values) < len(self.rows) or len({m.samples for m in found if m}) > 1:
            return None
        return fmean(values), stdev(values)

    def note(self) -> str:
        """One line for people."""
        told = []
        for name, headline, scale in (("KID ×10³", "kid", 1e3), ("FD", "frechet", 1.0)):
            if (found := self.of(headline)) is not None:  # type: ignore[arg-type]
                told.append(f"{name} {scale * found[0]:.1f} ± {scale * found[1]:.1f}")
        return f"{self.label}: {', '.join(told) or 'not comparable'} (mean ± standard deviation)."

    def record(self) -> dict[str, Any]:
        """The same for comparison.json: plain values, nothing rounded."""
        kid, frechet = self.of("kid"), self.of("frechet")
        return {
            "runs": [row.run.label for row in self.rows],
            "setting": self.rows[0].setting,
            "seeds": [row.run.seed for row in self.rows],
            "kid_mean": kid and kid[0],
            "kid_standard_deviation": kid and kid[1],
            "frechet_mean": frechet and frechet[0],
            "frechet_standard_deviation": frechet and frechet[1],
        }


def alike(items: Iterable[T], row_of: Callable[[T], Row]) -> list[list[T]]:
    """Items in groups whose rows differ in nothing but a seed, each group in the order of its seeds."""
    groups: dict[tuple[str, str], list[T]] = {}
    for item in items:
        row = row_of(item)
        groups.setdefault((row.run.recipe, row.detail), []).append(item)
    return [sorted(group, key=lambda item: row_of(item).run.seed or 0) for group in groups.values()]


def over_seeds(rows: Iterable[Row]) -> list[OverSeeds]:
    """Every recipe and sampler setting of which there are runs with several seeds, in the order of the rows."""
    groups = alike(rows, lambda row: row)
    return [OverSeeds(group) for group in groups if len({row.run.seed for row in group}) > 1]
