"""The plots of a comparison: quality against speed, training cost and compression, as SVG and as PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ldmlab.tasks.comparison.looks import INK, RunStyle, drawing, log_ticks, log_x, styled, styles_for, svg_of
from ldmlab.tasks.comparison.rows import (
    NAMES,
    PREVIEW,
    REAL,
    RECONSTRUCTION,
    SCALES,
    Headline,
    Row,
    best_row,
    by_series,
)
from ldmlab.tasks.comparison.runs import COSTS, Measurement, Run
from ldmlab.tasks.comparison.seeds import same_but_seed
from ldmlab.tasks.comparison.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CPU_MINUTES = "CPU minutes"


@dataclass(frozen=True)
class Plot:
    """One figure, what it shows, and the runs in its legend, which is drawn beside all plots of a page."""

    title: str
    figure: Figure
    caption: str
    runs: list[Run]

    def legend(self, styles: dict[str, RunStyle]) -> list[RunStyle]:
        """The looks of its runs, each once: those that differ in their seeds alone share one."""
        return list(dict.fromkeys(styles[run.label] for run in self.runs))

    @property
    def svg(self) -> str:
        """For a page."""
        with styled():
            return svg_of(self.figure)

    def save(self, path: Path, styles: dict[str, RunStyle]) -> None:
        """As a PNG with a legend and a white ground, for a paper."""
        with styled():
            axes = self.figure.axes[0]
            for style in self.legend(styles):
                axes.plot([], [], color=style.colour, marker=style.marker, linestyle="none", label=style.name)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=8)
            self.figure.savefig(path, dpi=200, facecolor="white")


def plots_of(table: Table, styles: dict[str, RunStyle], every_cost: bool = False) -> list[Plot]:
    """The plots of a table for which something was measured. Training is drawn over CPU time, or over `every_cost`."""
    if table.headline is None:
        return []
    costs = list(COSTS) if every_cost else [CPU_MINUTES]
    drawn = [
        *(_against_training(table.rows, table.headline, styles, cost) for cost in costs),
        _against_factor(table.rows, table.headline, styles),
    ]
    if table.stage == "diffusion":
        sampled = [against(table.rows, table.headline, styles) for against in (_against_evaluations, _against_speed)]
        drawn = [*sampled, *drawn]
    return [plot for plot in drawn if plot]


def previews(row: Row) -> list[tuple[dict[str, Any], float]]:
    """The lines of a run's history that have a preview of a row's kernel distance, each with KID ×10³."""
    if row.kid is None:
        return []
    detail = PREVIEW if row.run.stage == "diffusion" else f"{RECONSTRUCTION}-{PREVIEW}"
    key = f"{row.kid.split}/{row.kid.quantity}@{detail}"
    return [
        (entry, entry[key] * SCALES["kid"])
        for entry in row.run.history()
        if isinstance(entry.get(key), int | float) and math.isfinite(entry[key])
    ]


def training_curve(row: Row, headline: Headline, cost: str = CPU_MINUTES) -> list[tuple[float, float]]:
    """One of `COSTS`, the autoencoder's included, and KID ×10³ of a run's previews, in the order of training.

    Fréchet distances of previews are at another N than the final one: there is no curve of them.
    """
    if headline != "kid":
        return []
    return [(spent, kid) for entry, kid in previews(row) if (spent := row.run.cost_then(entry, cost)) is not None]


def discriminator_starts(run: Run, cost: str = CPU_MINUTES) -> tuple[float | None, float | None]:
    """One of `COSTS` when a discriminator was first trained, and first heard of by the autoencoder; None without."""
    found: dict[str, float] = {}
    for entry in run.history():
        for key in ("train/logits_real", "train/adversarial_weight"):
            if key in entry and (spent := run.cost_then(entry, cost)) is not None:
                found.setdefault(key, spent)
    return found.get("train/logits_real"), found.get("train/adversarial_weight")


def _against_evaluations(rows: Sequence[Row], headline: Headline, styles: dict[str, RunStyle]) -> Plot | None:
    """A curve for each sampler over its number of evaluations; None unless one was measured at several."""
    points = [
        _Point(row, float(nfe), quality)
        for row in rows
        if (nfe := row.manifest.get("nfe")) and (quality := _finite(row.quality(headline)))
    ]
    curves = _curves(points)
    if all(len(curve) < 2 for curve in curves.values()):
        return None
    with drawing() as (figure, axes):
        looks = _looks_of(curves, styles)
        _draw_curves(axes, curves, headline, looks)
        axes.set_xlabel("evaluations of the network for an image (log scale)")
        log_x(axes, [p.x for p in points])
        _quality_axis(axes, headline, [p.y(headline) for p in points])
        _legend(axes, looks)
    caption = "A curve for each sampler. Guidance evaluates twice a step."
    return Plot("Quality against evaluations", figure, caption, [])


def _against_speed(rows: Sequence[Row], headline: Headline, styles: dict[str, RunStyle]) -> Plot | None:
    points = [
        _Point(row, speed, quality)
        for row in rows
        if (speed := row.speed("images_per_s")) and (quality := _finite(row.quality(headline)))
    ]
    if len(points) < 2:
        return None  # a single point shows nothing that the table does not
    curves = _curves(points)
    runs = _runs(points)
    several = len(curves) > len(runs)  # of some run: the samplers are told apart, not the runs
    own = _looks_of(curves, styles) if several else [styles[curve[0].row.run.label] for curve in curves.values()]
    with drawing() as (figure, axes):
        _draw_curves(axes, curves, headline, own)
        axes.set_xlabel("images / s (log scale)")
        log_x(axes, [p.x for p in points])
        _quality_axis(axes, headline, [p.y(headline) for p in points])
        if several:
            _legend(axes, own)
        else:
            for point in points:
                if (nfe := point.row.manifest.get("nfe")) is not None:
                    position = (point.x, point.y(headline))
                    axes.annotate(f"{nfe:g}", position, (6, 5), textcoords="offset points", fontsize=9)
    beside = "" if several else ", its NFE beside it"
    caption = f"A point for each sampler setting{beside}. Best is down and to the right."
    return Plot("Quality against speed", figure, caption, [] if several else runs)


def _against_training(
    rows: Sequence[Row], headline: Headline, styles: dict[str, RunStyle], cost: str = CPU_MINUTES
) -> Plot | None:
    points = [
        _Point(row, spent, quality)
        for row in _best_of_each_run(rows, headline)
        if (spent := row.run.total(cost)) and (quality := _finite(row.quality(headline)))
    ]
    curves = [training_curve(p.row, headline, cost) for p in points]
    if len(points) < 2 and not any(curves):
        return None
    starts = [discriminator_starts(p.row.run, cost) for p in points]
    with drawing() as (figure, axes):
        for point, curve, (trained, heard) in zip(points, curves, starts, strict=True):
            style = styles[point.row.run.label]
            for start, line in ((trained, ":"), (heard, "--")):
                if start is not None:
                    axes.axvline(start, color=style.colour, alpha=0.7, linestyle=line, linewidth=1.0)
            if curve:
                _curve(axes, [x for x, _ in curve], [y for _, y in curve], style)
            _mark(axes, point, headline, style)
        drawn = [(p.x, p.y(headline)) for p in points] + [xy for curve in curves for xy in curve]
        xs = [x for x, _ in drawn]
        if min(xs) > 0 and max(xs) > 10 * min(xs):
            log_x(axes, xs)
        else:
            axes.set_xlim(left=0)
        diffusion = points[0].row.run.stage == "diffusion"
        axes.set_xlabel(f"training{' with autoencoder' if diffusion else ''} ({cost})")
        _quality_axis(axes, headline, [y for _, y in drawn])
    caption = "The finished run with its best sampler setting." if diffusion else "Reconstructions of the finished run."
    if any(curves):
        sampler = " and with the preview's sampler" if diffusion else ""
        caption += f" Thin lines: previews while training, from fewer samples{sampler}."
    if any(heard is not None for _, heard in starts):
        caption += " Dotted: from here the discriminator is trained; dashed: from here the autoencoder hears of it."
    title = "Quality against training cost" if cost == CPU_MINUTES else f"Quality against {cost}"
    return Plot(title, figure, caption, _runs(points))


def _against_factor(rows: Sequence[Row], headline: Headline, styles: dict[str, RunStyle]) -> Plot | None:
    def placed(rows: Sequence[Row]) -> list[_Point]:
        return [
            _Point(row, row.run.factor, quality)
            for row in rows
            if row.run.factor and (quality := _finite(row.quality(headline)))
        ]

    every, points = placed(rows), placed(_best_of_each_run(rows, headline))
    if len(points) < 2:
        return None
    with drawing() as (figure, axes):
        best: dict[float, float] = {}
        for same in same_but_seed(every, lambda point: point.row.run, lambda point: point.row.detail):
            # the mean over seeds: the luckiest of three is no better than another's only one
            mean = fmean(point.y(headline) for point in same)
            best[same[0].x] = min(best.get(same[0].x, math.inf), mean)
        axes.plot(sorted(best), [best[x] for x in sorted(best)], color=INK, alpha=0.4, linewidth=1.2)
        heights = [p.y(headline) for p in points]
        heights += (recon := _draw_floor(axes, points, headline, RECONSTRUCTION, "floor: reconstruction", "--"))
        for point in points:
            _mark(axes, point, headline, styles[point.row.run.label])
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(best) / 1.5, max(best) * 1.5)
        axes.set_xticks(sorted(best), [f"f{x:g}" for x in sorted(best)])
        axes.minorticks_off()
        axes.set_xlabel("downsampling factor (f1 is pixels)")
        _quality_axis(axes, headline, heights)
        # so close to 0 that it would make any axis logarithmic, and is on none that is
        linear = axes.get_yscale() == "linear"
        real = _draw_floor(axes, points, headline, REAL, "floor: real images", ":") if linear else []
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    diffusion = points[0].row.run.stage == "diffusion"
    caption = "Each run with its best sampler setting. " if diffusion else ""
    caption += "The line joins the best of each factor, which is a mean where there are several seeds."
    under = ["what the autoencoder alone costs"] * bool(recon) + ["the distance of further real images"] * bool(real)
    caption += f" Under it, {' and '.join(under)}." if under else ""
    return Plot("Quality against compression", figure, caption, _runs(points))


@dataclass(frozen=True)
class _Point:
    row: Row
    x: float
    quality: Measurement

    def y(self, headline: Headline) -> float:
        return self.quality.value * SCALES[headline]

    def error(self, headline: Headline) -> float:
        return (self.quality.standard_error or 0.0) * SCALES[headline]


def _finite(measurement: Measurement | None) -> Measurement | None:
    return measurement if measurement and math.isfinite(measurement.value) else None


def _runs(points: Sequence[_Point]) -> list[Run]:
    return list({p.row.run.label: p.row.run for p in points}.values())


def _curves(points: Sequence[_Point]) -> dict[str, list[_Point]]:
    """Points that differ in the number of steps alone, by the name of what they share, from left to right."""
    series = by_series(points, lambda point: point.row)
    return {name: sorted(found, key=lambda p: p.x) for name, found in series.items()}


def _draw_curves(axes: Axes, curves: dict[str, list[_Point]], headline: Headline, styles: Sequence[RunStyle]) -> None:
    for curve, style in zip(curves.values(), styles, strict=True):
        _curve(axes, [p.x for p in curve], [p.y(headline) for p in curve], style)
        for point in curve:
            _mark(axes, point, headline, style)


def _looks_of(curves: dict[str, list[_Point]], styles: dict[str, RunStyle]) -> list[RunStyle]:
    """A look for each curve; those of runs that differ in their seeds alone share one."""
    rows = [curve[0].row for curve in curves.values()]
    one_recipe = len({styles[row.run.label] for row in rows}) == 1
    names = [row.series if one_recipe else f"{styles[row.run.label].name} {row.series}" for row in rows]
    different = list(dict.fromkeys(names))
    looks = dict(zip(different, styles_for(len(different)), strict=True))
    return [replace(looks[name], name=name) for name in names]


def _legend(axes: Axes, looks: Iterable[RunStyle]) -> None:
    for look in dict.fromkeys(looks):
        axes.plot([], [], color=look.colour, marker=look.marker, label=look.name)
    axes.legend(frameon=False, fontsize=9)


def _best_of_each_run(rows: Sequence[Row], headline: Headline) -> list[Row]:
    labels = dict.fromkeys(row.run.label for row in rows)
    bests = (best_row([row for row in rows if row.run.label == label], headline) for label in labels)
    return [row for row in bests if row]


def _draw_floor(
    axes: Axes, points: Sequence[_Point], headline: Headline, detail: str, name: str, line: str
) -> list[float]:
    """Draws one floor as a line over the factors; the heights drawn."""
    by_factor: dict[float, list[float]] = {}
    for point in points:
        if floor := _finite(point.row.floor(headline, detail)):
            by_factor.setdefault(point.x, []).append(floor.value * SCALES[headline])
    if not by_factor:
        return []
    xs = sorted(by_factor)
    ys = [fmean(by_factor[x]) for x in xs]
    if detail == REAL:  # a property of the data, the same for any factor: across the whole plot
        axes.axhline(fmean(ys), color=INK, alpha=0.8, linestyle=line, label=name)
    else:
        axes.plot(xs, ys, color=INK, alpha=0.8, linestyle=line, marker="_", markersize=12, label=name)
    return ys


def _curve(axes: Axes, xs: Sequence[float], ys: Sequence[float], style: RunStyle) -> None:
    axes.plot(xs, ys, color=style.colour, alpha=0.6, linewidth=1.2)


def _mark(axes: Axes, point: _Point, headline: Headline, style: RunStyle) -> None:
    axes.errorbar(
        point.x,
        point.y(headline),
        yerr=point.error(headline) or None,
        color=style.colour,
        marker=style.marker,
        markersize=8,
        linestyle="none",
        capsize=3,
        zorder=3,
    )


def _quality_axis(axes: Axes, headline: Headline, ys: Sequence[float]) -> None:
    """Logarithmic where distances span more than a factor of twenty; an unbiased KID may be negative, then linear."""
    name = NAMES[headline]
    if min(ys) > 0 and max(ys) > 20 * min(ys):
        axes.set_yscale("log")
        axes.set_ylim(min(ys) / 1.5, max(ys) * 1.5)
        log_ticks(axes.yaxis, max(ys) / min(ys))
        name += ", log scale"
    else:
        axes.set_ylim(bottom=min(0.0, *ys, axes.get_ylim()[0]))
    axes.set_ylabel(f"{name} (lower is better)")
