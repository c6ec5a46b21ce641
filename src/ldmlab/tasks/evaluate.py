"""Quality and speed of a trained run: with another sampler, steps, guidance, features; or once more, as a check."""

from __future__ import annotations

import os
from typing import Any

from ldmlab import processes
from ldmlab.errors import UserError
from ldmlab.tasks import checks, measure
from ldmlab.tasks.console import say
from ldmlab.tasks.measure_likelihood import bound_line
from ldmlab.tasks.quality import Metrics
from ldmlab.tasks.recipes import keep_recipe
from ldmlab.tasks.reproduce import reproduce
from ldmlab.tasks.run import read_run
from ldmlab.tasks.trained import Trained

Config = dict[str, Any]


def evaluate(config: Config) -> Config:
    """Measures a run again and adds the values to its summary; returns the summary of this evaluation alone.

    What is not asked for is as in the run: sampler, guidance, number of samples, features. Values measured before under
    the same name are replaced, those of other settings have other names. Started by torchrun, the processes share the
    work.
    """
    checks.check_measuring(config)
    if config["reproduce"] is not None:
        return reproduce(config)
    if config["from"] is None:
        raise UserError("from: which run? from=runs/STUDY/NAME")
    run = read_run(config["from"], None, "from")
    if not os.access(run.path, os.W_OK):
        raise UserError(f"from: {run} cannot be written in, and its summary is where the values go: copy the run")
    trained = Trained.load(run, config["data_path"], config["cache_dir"])
    recipe = trained.recipe(config)
    known: Metrics = processes.from_first(lambda: (run.summary or {})["metrics"])
    done = trained.measure(recipe, known)
    if processes.rank() == 0:
        with run.lock():
            summary = run.summary or {}
            summary["metrics"] |= done.metrics
            keep_recipe(summary, done.key, {**recipe, "cost": done.cost})
            run.finish(summary)
        if recipe["metrics"].get("likelihood"):
            line = bound_line(done.metrics)
        else:
            line = measure.headline(done.metrics | done.floors, done.detail, recipe["suffix"])
        say(f"{run}: {line}{measure.speed_line(done.metrics, done.detail)}")
    processes.wait()
    return {"metrics": done.metrics}
