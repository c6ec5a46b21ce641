"""The comparison's tables in Markdown."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ldmlab.tasks.comparison.columns import ABSENT, distance, number
from ldmlab.tasks.comparison.rows import NAMES, Row, by_series
from ldmlab.tasks.comparison.tables import Sheet, Table


def markdown(table: Sheet[Any]) -> str:
    """The table in Markdown."""
    lines = [
        "| " + " | ".join(escaped(column.heading) for column in table.columns) + " |",
        "|" + "|".join(" ---: " if column.numeric else " --- " for column in table.columns) + "|",
    ]
    for cells in table.cells():
        texts = (f"**{escaped(c.text)}**" if c.best else escaped(c.text) for c in cells)
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def by_evaluations(table: Table) -> str:
    """Quality and images/s of every sampler at each number of evaluations, in Markdown; "" where there is one number.

    The columns are the numbers of the sampler that was measured at most of them; what another sampler did with fewer
    stands in the next column, with its own number.
    """
    headline = table.headline
    measured = [row for row in table.rows if headline and row.manifest.get("nfe") and row.quality(headline)]
    series = {
        name: {row.manifest["nfe"]: row for row in rows} for name, rows in by_series(measured, lambda row: row).items()
    }
    budgets = max((sorted(found) for found in series.values()), key=len, default=[])
    if headline is None or len(budgets) < 2:
        return ""
    most = max(nfe for found in series.values() for nfe in found)
    if most > budgets[-1]:
        budgets.append(most)

    def cell(found: dict[float, Row], after: float, budget: float) -> str:
        inside = [nfe for nfe in found if after < nfe <= budget]
        if not inside:
            return ABSENT
        nfe = max(inside)
        speed = found[nfe].speed("images_per_s")
        told = [f"NFE {nfe:g}"] * (nfe != budget) + [f"{number(speed)}/s"] * (speed is not None)
        return distance(found[nfe].quality(headline), headline) + (f" ({', '.join(told)})" if told else "")

    lines = [
        f"| {NAMES[headline]} (images/s) at NFE | " + " | ".join(f"{budget:g}" for budget in budgets) + " |",
        "| --- |" + " ---: |" * len(budgets),
    ]
    for name, found in series.items():
        cells = (cell(found, after, budget) for after, budget in pairwise([0, *budgets]))
        lines.append(f"| {escaped(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a cell of a table too."""
    for character, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("\n", " ")):
        text = text.replace(character, instead)
    return text
