"""`ldmlab evaluate --reproduce runs/…/summary.json`: every number of a run measured again, beside what was written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ldmlab import processes
from ldmlab.errors import UserError
from ldmlab.tasks.console import say, say_table
from ldmlab.tasks.quality import Metrics
from ldmlab.tasks.run import read_run
from ldmlab.tasks.trained import Trained

Config = dict[str, Any]

TOLERANCE = 1e-3
"""Relative difference that another machine, another version of torch or another batch size may make."""

COUNTS = ("precision", "recall", "density", "coverage", "oracle", "probe")
"""Metrics that count images, and so move in steps of one over their number."""


def reproduce(config: Config) -> Config:
    """Measures all settings of a run's summary once more and shows both values of each; the run is left as it is.

    Speeds are shown and not judged: they belong to a machine.

    Raises:
        UserError: a value differs by more than `TOLERANCE` of it, a tenth of its standard error, and three images.
    """
    if config["from"] is not None:
        raise UserError("from: the summary says which run it is of; leave it out with --reproduce")
    path = Path(config["reproduce"])
    run = read_run(path.parent if path.name == "summary.json" else path, None, "reproduce")
    recorded: Metrics = (run.summary or {})["metrics"]
    trained = Trained.load(run, config["data_path"], config["cache_dir"])
    again: Metrics = {}
    for recipe in processes.from_first(lambda: list((run.summary or {})["measured"].values())):
        done = trained.measure(recipe, {})
        again |= done.metrics
    if processes.rank() != 0:
        return {"metrics": again}
    show(recorded, again)
    judged = sorted(name for name in recorded if not name.startswith("speed/"))
    if missing := [name for name in judged if name not in again]:
        raise UserError(f"reproduce: {len(missing)} of {len(judged)} values were not measured: {missing[0]}, ...")
    different = [name for name in judged if not agrees(name, recorded[name], again[name])]
    if different:
        raise UserError(f"reproduce: {len(different)} of {len(judged)} values are not as recorded: {different[0]}, ...")
    equal = sum(recorded[name]["value"] == again[name]["value"] for name in judged)
    say(f"{run}: {len(judged)} values reproduced, {equal} of them to the last digit")
    return {"metrics": again}


def agrees(name: str, recorded: Config, again: Config) -> bool:
    """Whether two measurements of the same are the same but for rounding."""
    before, after = recorded["value"], again["value"]
    if before == after:
        return True
    if not (math.isfinite(before) and math.isfinite(after)):
        return math.isnan(before) and math.isnan(after)
    least = max(TOLERANCE * abs(before), 0.1 * recorded.get("standard_error", 0.0))
    if name.partition("/")[2].startswith(COUNTS):
        least = max(least, 3 / recorded["manifest"]["samples"])
    return abs(after - before) <= least


def show(recorded: Metrics, again: Metrics) -> None:
    """A table of both values, and by how much they differ."""
    rows = []
    for name, metric in again.items():
        if name in recorded:
            before, after = recorded[name]["value"], metric["value"]
            difference = "0" if before == after else f"{(after - before) / abs(before):+.1e}" if before else "was 0"
            rows.append((name, f"{before:.10g}", f"{after:.10g}", difference))
    say_table(("metric", "recorded", "again", "difference"), rows)
