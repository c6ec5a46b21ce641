"""The comparison as a saved workspace at Weights & Biases: the same runs, live."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ldmlab.errors import UserError
from ldmlab.tasks.comparison.rows import REFERENCES, is_floor
from ldmlab.tasks.comparison.runs import COSTS, Run


def workspace(runs: list[Run], entity: str, project: str) -> Any:
    """A workspace, not saved, of the studies that runs are of: trade-offs, curves over every cost, samples.

    Raises:
        UserError: `wandb-workspaces` is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces.expr import And
    except ImportError as error:
        raise UserError("--wandb: needs wandb-workspaces; `pip install ldmlab[dashboard]`") from error
    studies = sorted({run.study for run in runs})
    quality, speed = most_common(runs, "kid"), most_common(runs, "images_per_s")
    recall, reconstruction = most_common(runs, "recall"), most_common(runs, "recon_psnr")
    factor = wr.Config("downsampling.factor")

    def summary(name: str | None) -> Any:
        return None if name is None else wr.SummaryMetric(name)

    def scatter(title: str, x: Any, y: str | None, **options: Any) -> list[Any]:
        return [] if x is None or y is None else [wr.ScatterPlot(title=title, x=x, y=summary(y), **options)]

    trade_off: list[Any] = [
        *scatter("Quality against factor", factor, quality, log_x=True),
        *scatter("Quality against speed", summary(speed), quality, log_x=True),
        *scatter("Speed against factor", factor, speed, log_x=True, log_y=True),
        *scatter("Quality against training", wr.SummaryMetric("cost/cpu_seconds"), quality),
        *scatter("Quality against recall", summary(recall), quality),
        *scatter("Reconstruction against factor", factor, reconstruction, log_x=True),
    ]
    previews = sorted({name for run in runs for entry in run.history() for name in entry if name.endswith("@preview")})
    curves: list[Any] = [
        wr.LinePlot(title=f"{title} over {cost.replace('_', ' ')}", x=wr.Metric(f"cost/{cost}"), y=[wr.Metric(name)])
        for title, name in [*((name, name) for name in previews if "/kid" in name), ("Loss", "train/loss")]
        for cost, _ in COSTS.values()
    ]
    pictures = wr.MediaBrowser(media_keys=["samples", "final", "reconstructions"])
    samples: list[Any] = [pictures, wr.RunComparer(diff_only="split")]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"ldmlab: {', '.join(studies)}",
        sections=[
            ws.Section(name="Trade-off", is_open=True, panels=trade_off),
            ws.Section(name="Samples", is_open=True, panels=samples),
            ws.Section(name="Training", panels=curves),
        ],
        runset_settings=ws.RunsetSettings(filters=And(ws.Config("study").isin(studies))),
    )


def most_common(runs: Iterable[Run], quantity: str) -> str | None:
    """The name under which most runs have what begins so, of generated images where there are any."""
    counted = Counter(
        m.name
        for run in runs
        for m in run.measurements.values()
        if m.quantity.startswith(quantity) and not is_floor(m.detail, *REFERENCES)
    )
    return counted.most_common(1)[0][0] if counted else None


def save(runs: list[Run], place: str) -> str:
    """Saves a workspace to ENTITY/PROJECT; returns its address.

    Raises:
        UserError: `place` is none, nobody is logged in, or wandb cannot be reached.
    """
    entity, _, project = place.partition("/")
    if not entity or not project:
        raise UserError(f"--wandb: ENTITY/PROJECT is needed, not {place}")
    made = workspace(runs, entity, project)
    try:
        made.save()
    except Exception as error:  # requests, wandb and gql each have their own
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--wandb: {message}; log in with `wandb login`, and sync the runs first") from error
    return str(made.url)
