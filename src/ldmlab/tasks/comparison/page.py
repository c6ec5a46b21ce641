"""The comparison as one HTML file: no server, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from ldmlab.tasks.comparison import explorer
from ldmlab.tasks.comparison.columns import count, distance
from ldmlab.tasks.comparison.looks import run_styles
from ldmlab.tasks.comparison.plots import plots_of
from ldmlab.tasks.comparison.rows import NAMES, best_row
from ldmlab.tasks.comparison.runs import Findings, Measurement, Run
from ldmlab.tasks.comparison.tables import DataGroup, all_runs

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Image:
    """A PNG file inside the page, with its size in pixels."""

    data: str
    width: int
    height: int

    @classmethod
    def read(cls, path: Path | None) -> Image | None:
        """The image at `path`; None where there is none, or where the file is no PNG (cut short, for example)."""
        content = path.read_bytes() if path else b""
        if not content.startswith(PNG_SIGNATURE) or len(content) < 24:
            return None
        width, height = struct.unpack(">II", content[16:24])
        return cls(base64.b64encode(content).decode("ascii"), width, height)


def render_page(findings: Findings, groups: list[DataGroup]) -> str:
    """The page as HTML text."""
    runs = all_runs(groups)
    styles = run_styles(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names come from users
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        findings=findings,
        groups=groups,
        runs=runs,
        styles=styles,
        plots=lambda table: [(plot, Markup(plot.svg)) for plot in plots_of(table, styles)],
        sample_grid=lambda run: Image.read(run.sample_grid()),
        reconstruction_grid=lambda run: Image.read(run.reconstruction_grid()),
        grid_caption=_grid_caption,
        by_manifest=_by_manifest,
        count=count,
        charts=lambda table: explorer.charts(table, styles),
        filters=explorer.filters(runs),
        settings={run.label: explorer.settings(run) for run in runs},
        embedded=explorer.embedded,
        library=explorer.library(),
        script=Markup((Path(__file__).parent / "page.js").read_text(encoding="utf-8")),
    )


def _by_manifest(run: Run) -> list[tuple[Markup, list[Measurement]]]:
    """A run's measurements by how they were made, which most share with others: once is enough to say it."""
    found: dict[str, list[Measurement]] = {}
    for measurement in run.measurements.values():
        found.setdefault(json.dumps(measurement.manifest, ensure_ascii=False), []).append(measurement)
    # quotes may stand in text as they are, and there are many
    return [(Markup(html.escape(manifest, quote=False)), measured) for manifest, measured in found.items()]


def _grid_caption(run: Run, group: DataGroup) -> str:
    """Factor and quality of a run, for the line under its images."""
    tables = group.diffusion if run.stage == "diffusion" else group.autoencoders
    parts = [f"f{run.factor}"] if run.factor else []
    for table in tables:
        if best := best_row([row for row in table.rows if row.run is run], "kid"):
            setting = f" ({best.setting})" if run.stage == "diffusion" else ""
            parts.append(f"{NAMES['kid']} {distance(best.kid)}{setting}")
            break  # one yardstick is enough for a caption: that of the first table
    return " · ".join(parts)
