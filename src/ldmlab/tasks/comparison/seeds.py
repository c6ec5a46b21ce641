"""Runs that differ in nothing but a seed: how much of a difference is chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, TypeVar

from ldmlab.tasks.comparison.columns import distance
from ldmlab.tasks.comparison.rows import Headline, Row
from ldmlab.tasks.comparison.runs import Measurement, Run

T = TypeVar("T")


@dataclass(frozen=True)
class OverSeeds:
    """What one recipe reached at several seeds with one sampler setting."""

    rows: list[Row]

    @property
    def label(self) -> str:
        """The run of the shortest name, and the seeds."""
        shortest = min((row.label for row in self.rows), key=len)
        seeds = [row.run.seeds for row in self.rows]
        several_autoencoders = len({autoencoder for _, autoencoder in seeds}) > 1
        told = [f"{own}/{autoencoder}" if several_autoencoders else str(own) for own, autoencoder in seeds]
        return f"{shortest} over seeds {', '.join(told)}"

    def of(self, headline: Headline) -> Measurement | None:
        """The mean of a distance, with the standard deviation between runs in place of an error.

        None unless all rows have it, from as many images.
        """
        found = [row.quality(headline) for row in self.rows]
        values = [m.value for m in found if m is not None and math.isfinite(m.value)]
        sizes = {m.samples for m in found if m}
        if len(values) < len(self.rows) or len(sizes) > 1:
            return None
        return Measurement("", fmean(values), stdev(values), {"samples": sizes.pop()})

    def note(self) -> str | None:
        """One line for people, None where there is nothing to say."""
        names: dict[Headline, str] = {"kid": "KID ×10³", "frechet": "FD"}
        told = [f"{name} {distance(found, kind)}" for kind, name in names.items() if (found := self.of(kind))]
        return f"{self.label}: {', '.join(told)} (mean ± standard deviation)." if told else None

    def record(self) -> dict[str, Any]:
        """The same for comparison.json: plain values, nothing rounded."""
        first = self.rows[0]
        found: dict[str, Any] = {
            "runs": [row.run.label for row in self.rows],
            "stage": first.run.stage,
            "yardstick": asdict(first.yardstick) if first.yardstick else None,
            "setting": first.setting,
            "seeds": [row.run.seeds for row in self.rows],
        }
        kinds: tuple[Headline, ...] = ("kid", "frechet")
        for kind in kinds:
            mean = self.of(kind)
            found |= {
                f"{kind}_mean": mean and mean.value,
                f"{kind}_standard_deviation": mean and mean.standard_error,
                f"{kind}_samples": mean and mean.samples,
            }
        return found


def same_but_seed(
    items: Iterable[T], run_of: Callable[[T], Run], also: Callable[[T], object] = lambda item: None
) -> list[list[T]]:
    """Items in groups, in their order, whose runs differ in nothing but their seeds, and which share `also`.

    Where a seed comes twice, as in two studies on two revisions, each study has its own group; and each run where it
    comes twice in a study.
    """
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault((run_of(item).recipe, also(item)), []).append(item)
    found = []
    for group in groups.values():
        if len({run_of(item).seeds for item in group}) == len(group):
            found.append(group)
            continue
        apart: dict[object, list[T]] = {}
        for item in group:
            apart.setdefault(run_of(item).folder.parent, []).append(item)
        for study in apart.values():
            several = len({run_of(item).seeds for item in study}) == len(study)
            found += [study] if several else [[item] for item in study]
    return found


def over_seeds(rows: Iterable[Row]) -> list[OverSeeds]:
    """Every recipe and sampler setting of which there are runs with several seeds, in the order of the rows."""
    groups = same_but_seed(rows, lambda row: row.run, lambda row: row.detail)
    ordered = (sorted(group, key=lambda row: str(row.run.seeds)) for group in groups)
    return [OverSeeds(group) for group in ordered if len({row.run.seeds for row in group}) > 1]
