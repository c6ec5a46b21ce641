"""`ldmlab compare`: finished runs side by side, on the terminal and as a page.

Nothing here imports torch: the command answers at once, on a machine that has only the runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from ldmlab.errors import UserError
from ldmlab.tasks.comparison.looks import run_styles
from ldmlab.tasks.comparison.markdown import by_evaluations, escaped, markdown
from ldmlab.tasks.comparison.page import render_page
from ldmlab.tasks.comparison.plots import plots_of
from ldmlab.tasks.comparison.runs import Findings, find_runs
from ldmlab.tasks.comparison.tables import DataGroup, Sheet, Table, all_runs, group_by_data


def compare(
    paths: list[Path], output: Path | None = None, wandb: str | None = None, figures: Path | None = None
) -> Path:
    """Compares the finished runs below `paths` and returns the path of the page that shows them.

    Beside the page go the tables in Markdown (`.md`) and the rows as data (`.json`).

    Args:
        paths: runs (folders with a summary.json), studies (folders of runs) or folders of studies.
        output: the page's path if it ends in `.html`, else the folder for `comparison.html`; the default is the
            folder that the runs have in common, which for the runs of one study is the study.
        wandb: ENTITY/PROJECT where a workspace with the same comparison is saved.
        figures: a folder for the plots as PNGs, with legends, as papers need them.

    Raises:
        UserError: there is nothing to compare, or the page cannot be written.
    """
    findings = find_runs(paths)
    groups = group_by_data(findings.runs)
    page = output or findings.root
    page = page if page.suffix == ".html" else page / "comparison.html"
    documents = {
        page: render_page(findings, groups),
        page.with_suffix(".md"): _markdown_document(findings, groups),
        page.with_suffix(".json"): json.dumps(_records(findings, groups), indent=2, ensure_ascii=False) + "\n",
    }
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path, text in documents.items():
            path.write_text(text, encoding="utf-8")
        if figures is not None:
            figures.mkdir(parents=True, exist_ok=True)
            save_figures(groups, figures)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or page} ({error.strerror}): choose another place") from error
    _print(findings, groups, page)
    if wandb is not None:
        from ldmlab.tasks.comparison import dashboard

        print(f"workspace: {dashboard.save(findings.runs, wandb)}")
    return page


def save_figures(groups: list[DataGroup], folder: Path) -> None:
    """All plots of a comparison as PNGs, in the page's colours, named by what they show of which table.

    Training is drawn over each of its costs, of which the page's reader chooses one.
    """
    styles = run_styles(all_runs(groups))
    for group in groups:
        for heading, tables in _headed(group):
            for number, table in enumerate(tables, 1):
                for plot in plots_of(table, styles, every_cost=True):
                    which = f"{group.title} {heading}{f' {number}' if len(tables) > 1 else ''} {plot.title}"
                    plot.save(folder / f"{re.sub(r'[^a-z0-9]+', '-', which.lower()).strip('-')}.png", styles)


def _print(findings: Findings, groups: list[DataGroup], page: Path) -> None:
    console = Console()
    for group in groups:
        console.print()
        console.print(Text(group.title, style="bold underline"))
        for note in group.notes:
            console.print(Text(note, style="yellow"))
        for heading, tables in _headed(group):
            for table in tables:
                console.print()
                console.print(Text.assemble((heading, "bold"), f": {table.title}"))
                for number, sheet in enumerate(table.sheets):
                    if number:
                        console.print()
                    if sheet.caption:
                        console.print(Text(sheet.caption, style="dim"))
                    _print_table(console, sheet)
                for note in table.notes:
                    console.print(Text(note, style="yellow"))
    for line in _left_out(findings):
        console.print(Text(line, style="yellow"), soft_wrap=True)
    console.print()
    console.print(Text(f"page: {_short(page)}", style="bold"), soft_wrap=True)


def _print_table(console: Console, table: Sheet[Any]) -> None:
    cells = table.cells()
    widths = [
        max(*map(cell_len, column.heading.split()), *(cell_len(row[i].text) for row in cells))
        for i, column in enumerate(table.columns)
    ]
    shown = list(range(len(widths)))
    from_the_right = reversed(range(1, len(widths)))
    # a narrow terminal loses what matters least, and then what is left but the quality
    for i in sorted(from_the_right, key=lambda i: not table.columns[i].secondary):
        if sum(widths[k] + 2 for k in shown) > console.width + 2 and i not in (1, table.quality_column):
            shown.remove(i)
    terminal = TerminalTable(box=None, header_style="dim", pad_edge=False)
    for i in shown:
        column = table.columns[i]
        terminal.add_column(Text(column.heading), justify="right" if column.numeric else "left", width=widths[i])
    for row in cells:
        terminal.add_row(*(Text(row[i].text, style="bold green" if row[i].best else "") for i in shown))
    console.print(terminal)
    if hidden := [column.heading for i, column in enumerate(table.columns) if i not in shown]:
        console.print(Text(f"on the page too: {', '.join(hidden)}", style="dim"))


def _markdown_document(findings: Findings, groups: list[DataGroup]) -> str:
    parts = [f"# Comparison: {escaped(findings.title)}"]
    for group in groups:
        parts += [f"## {escaped(group.title)}", *map(escaped, group.notes)]
        for heading, tables in _headed(group):
            for table in tables:
                parts.append(f"### {heading}: {escaped(table.title)}")
                for sheet in table.sheets:
                    parts += [sheet.caption, markdown(sheet)] if sheet.caption else [markdown(sheet)]
                parts += map(escaped, table.notes)
                if samplers := by_evaluations(table):
                    parts.append(samplers)
        commands = [command for run in group.runs("diffusion") if (command := run.command())]
        if commands:
            parts.append("\n".join(["```", *commands, "```"]))
    if left_out := list(_left_out(findings)):
        parts.append("\n".join(f"- {escaped(line)}" for line in left_out))
    return "\n\n".join(parts) + "\n"


def _records(findings: Findings, groups: list[DataGroup]) -> dict[str, list[dict[str, object]]]:
    tables = {
        "diffusion": [table for group in groups for table in group.diffusion],
        "autoencoders": [table for group in groups for table in group.autoencoders],
    }
    means = [
        recipe.record(table.columns) for found in tables.values() for table in found for recipe in table.over_seeds.rows
    ]
    remarks = {"not_finished": findings.unfinished, "not_readable": findings.unreadable}
    return {
        **{stage: [row.record() for table in found for row in table.rows] for stage, found in tables.items()},
        "over_seeds": means,
        **{why: [{"run": r.label, "reason": r.reason} for r in found] for why, found in remarks.items()},
    }


def _headed(group: DataGroup) -> Iterator[tuple[str, list[Table]]]:
    yield "Diffusion models", group.diffusion
    yield "Autoencoders", group.autoencoders


def _left_out(findings: Findings) -> Iterator[str]:
    for remark in findings.unfinished:
        yield f"not finished: {remark.label} ({remark.reason})"
    for remark in findings.unreadable:
        yield f"not readable: {remark.label} ({remark.reason})"
    for path in findings.empty:
        yield f"no run below {path}"


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
