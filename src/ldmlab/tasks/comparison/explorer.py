"""Plots of the page that answer back: any quantity over any other, and curves over any cost, drawn by Vega-Lite."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import vl_convert
from markupsafe import Markup

from ldmlab.tasks.comparison.looks import RunStyle
from ldmlab.tasks.comparison.plots import previews
from ldmlab.tasks.comparison.rows import NAMES, SCALES, Row
from ldmlab.tasks.comparison.runs import COSTS, Run
from ldmlab.tasks.comparison.tables import Table

Spec = dict[str, Any]

ACROSS = {"type": "log", "nice": False, "padding": 30}

SPEEDS = {
    "images/s": "images_per_s",
    "latency of one image, s": "latency_s",
    "evaluations for an image": "nfe",
    "FLOPs for an image": "flops_per_image",
    "peak memory, MB": "peak_memory_mb",
}
RECONSTRUCTIONS = {"PSNR, dB": "recon_psnr", "SSIM": "recon_ssim"}
SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "triangle-left",
}
"""Vega's names of matplotlib's markers."""
NOT_SHOWN = ("experiment", "trainer", "logger")


def charts(table: Table, styles: dict[str, RunStyle]) -> list[Spec]:
    """What can be explored of a table: its rows, and the previews over training where there are any."""
    made = [_points(table, styles), _curves(table, styles)]
    return [chart for chart in made if chart is not None]


def quantities(row: Row) -> dict[str, float]:
    """Everything about a row that is a number, by the name that an axis has."""
    run = row.run
    found: dict[str, float | None] = {
        NAMES["kid"]: None if row.kid is None else SCALES["kid"] * row.kid.value,
        NAMES["frechet"]: None if row.frechet is None else row.frechet.value,
        "factor": run.factor,
        **{name: None if (m := run.measured(q)) is None else m.value for name, q in RECONSTRUCTIONS.items()},
        **{name: row.speed(quantity) for name, quantity in SPEEDS.items()},
        **{name: run.total(name) for name in COSTS},
        **{name.replace("_", " "): value for name, value in row.others.items() if not name.startswith("oracle")},
        **{name.replace("_", " "): measurement.value for name, measurement in row.fidelity.items()},
        "parameters": sum(run.parameters.values()) or None,
    }
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def settings(run: Run) -> dict[str, str]:
    """What a run can be chosen by."""
    choices = {group: str(choice) for group, choice in run.choices.items() if group not in NOT_SHOWN}
    return {"study": run.study, "stage": run.stage, **choices, **({} if run.seed is None else {"seed": str(run.seed)})}


def filters(runs: Iterable[Run]) -> dict[str, list[str]]:
    """The settings in which runs differ, each with its values."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in settings(run).items():
            values.setdefault(key, set()).add(value)
    return {key: sorted(several, key=_by_number) for key, several in values.items() if len(several) > 1}


def _by_number(text: str) -> tuple[bool, float, str]:
    """Seeds in the order of numbers, and before what is none."""
    return not text.isdecimal(), float(text) if text.isdecimal() else 0.0, text


def _points(table: Table, styles: dict[str, RunStyle]) -> Spec | None:
    values = [{**_named(row, styles), "setting": row.setting, **quantities(row)} for row in table.rows]
    # what some rows have and others have not can be looked at too
    names = dict.fromkeys(key for value in values for key in value)
    axes = [name for name in names if name not in ("run", "recipe", "setting")]
    if len(values) < 2 or len(axes) < 2:
        return None
    y = next((name for name in NAMES.values() if name in axes), axes[0])
    x = next(name for name in ("images/s", "factor", *axes) if name in axes and name != y)
    tooltip = [{"field": name, "type": "nominal"} for name in ("run", "setting")]
    tooltip += [{"field": _escaped(name), "type": "quantitative", "format": ".4~g", "title": name} for name in axes]
    return {
        **_frame(values),
        "params": [_visible(table.rows), _choice("x", axes, x), _choice("y", axes, y)],
        "transform": [
            {"filter": "indexof(runs, datum.run) >= 0"},
            {"calculate": "datum[x]", "as": "across"},
            {"calculate": "datum[y]", "as": "up"},
            {"filter": "isValid(datum.across) && isValid(datum.up) && datum.across > 0"},
        ],
        "mark": {"type": "point", "filled": True, "size": 90},
        "encoding": {
            "x": {"field": "across", "type": "quantitative", "scale": ACROSS, "title": None},
            "y": {"field": "up", "type": "quantitative", "scale": {"zero": False, "padding": 12}, "title": None},
            **_looks(table.rows, styles),
            "tooltip": tooltip,
        },
    }


def _curves(table: Table, styles: dict[str, RunStyle]) -> Spec | None:
    values = [{**_named(row, styles), **value} for row in _one_of_each(table.rows) for value in _previews(row)]
    if not values:
        return None
    return {
        **_frame(values),
        "params": [_visible(table.rows), _choice("x", list(COSTS), next(iter(COSTS)))],
        "transform": [
            {"filter": "indexof(runs, datum.run) >= 0"},
            {"calculate": "datum[x]", "as": "across"},
            {"filter": "isValid(datum.across) && datum.across > 0"},
        ],
        "mark": {"type": "line", "point": {"filled": True, "size": 50}},
        "encoding": {
            "x": {"field": "across", "type": "quantitative", "scale": ACROSS, "title": None},
            "y": {
                "field": "KID",
                "type": "quantitative",
                "scale": {"zero": False},
                "title": f"{NAMES['kid']} of previews",
            },
            **_looks(table.rows, styles),
            "detail": {"field": "run", "type": "nominal"},  # a line for each seed
            "tooltip": [
                {"field": "run", "type": "nominal"},
                {"field": "KID", "type": "quantitative", "format": ".4~g"},
                {"field": "across", "type": "quantitative", "format": ".4~g", "title": "at"},
            ],
        },
    }


def _previews(row: Row) -> list[dict[str, Any]]:
    """The previews of a row's distance, each with what training had cost by then, the autoencoder's share included."""
    return [
        {"KID": kid, **{name: value for name in COSTS if (value := row.run.cost_then(entry, name)) is not None}}
        for entry, kid in previews(row)
    ]


def _named(row: Row, styles: dict[str, RunStyle]) -> dict[str, str]:
    """The run, by which the page filters, and what legends call it."""
    return {"run": row.run.label, "recipe": styles[row.run.label].name}


def _one_of_each(rows: list[Row]) -> list[Row]:
    return list({row.run.label: row for row in reversed(rows)}.values())[::-1]  # the first of each, in their order


def _frame(values: list[dict[str, Any]]) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "data": {"values": values},
        "width": "container",
        "height": 340,
        "autosize": {"type": "fit", "contains": "padding"},
        "config": {"axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"}},
    }


def _visible(rows: list[Row]) -> Spec:
    """The runs that the page's filters leave, which the page sets."""
    return {"name": "runs", "value": sorted({row.run.label for row in rows})}


def _choice(name: str, options: list[str], value: str) -> Spec:
    return {"name": name, "value": value, "bind": {"input": "select", "options": options, "name": f"{name}: "}}


def _looks(rows: list[Row], styles: dict[str, RunStyle]) -> Spec:
    """Colours and markers of the page's other plots."""
    looks = list(dict.fromkeys(styles[row.run.label] for row in rows))
    names = [look.name for look in looks]
    room = 1000 // (80 + 8 * max(map(len, names)))  # of a wide page, in pixels
    legend = {
        "orient": "bottom",
        "columns": max(1, min(len(names), room)),
        "columnPadding": 24,
        "labelLimit": 340,
        "labelFontSize": 12,
        "title": None,
        "symbolSize": 90,
    }
    ranges = {"color": [look.colour for look in looks], "shape": [SHAPES[look.marker] for look in looks]}
    return {
        channel: {"field": "recipe", "type": "nominal", "scale": {"domain": names, "range": values}, "legend": legend}
        for channel, values in ranges.items()
    }


def _escaped(name: str) -> str:
    """A field's name in Vega-Lite, where dots and brackets lead into it."""
    for character in "\\.[]'\"":
        name = name.replace(character, f"\\{character}")
    return name


def embedded(data: Any) -> Markup:
    """Data as JSON within a script element, which no text in it can end."""
    return Markup(json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


@cache
def library() -> Markup:
    """Vega, Vega-Lite and what puts them on a page, as one script (0.9 MB): the page loads nothing from elsewhere."""
    return Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script"))
