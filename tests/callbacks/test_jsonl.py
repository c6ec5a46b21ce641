"""The log of a run, across interruptions."""

import json

from ldmlab.callbacks.budget import Budget, Cost, Limits
from ldmlab.callbacks.jsonl import JsonLines


def logged(path, before, *steps):
    budget = Budget(Limits(), 0, False, before=Cost(steps=before))
    log = JsonLines(path, budget)
    for step in steps:
        budget.cost = Cost(steps=step)
        log.log_metrics({"loss": step / 10})
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_run_that_goes_on_drops_what_it_logged_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert logged(path, 0, 5, 10, 15) == [5, 10, 15]
    with path.open("a") as file:
        file.write('{"step": 20, "lo{"step": 7, "loss": 1}\n')  # killed while it wrote, and gone on with
    assert logged(path, 10, 15, 20) == [5, 10, 15, 20]


def test_a_run_from_the_start_begins_its_log_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, 0, 5, 10)
    assert logged(path, 0, 3) == [3]
