"""Tables of the comparison: groups of comparable rows, their columns, the best values and the caveats.

The terminal, the Markdown file and the page all show these tables; none of them decides what is comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ldmlab.tasks.comparison.rows import (
    REAL,
    RECONSTRUCTION,
    Headline,
    Row,
    Yardstick,
    best_row,
    headline_of,
    rows_of,
    sort_rows,
)
from ldmlab.tasks.comparison.runs import Measurement, Run

ABSENT = "–"
PAIRS = (("precision", "recall"), ("density", "coverage"))
"""Fidelity and diversity, of 5 neighbours."""

CONDITIONS = ("device", "threads", "dtype", "torch")
"""Keys of a speed manifest that make two speeds incomparable when they differ."""


@dataclass(frozen=True)
class Column:
    """One column: `text` is what a cell shows, `value` what "best" is decided by.

    `secondary` columns give way when a terminal is narrow.
    """

    heading: str
    text: Callable[[Row], str]
    value: Callable[[Row], float | None] = lambda row: None
    better: Literal["lower", "higher"] | None = None
    meaning: str = ""
    secondary: bool = False
    numeric: bool = True

    def best(self, rows: Sequence[Row]) -> float | None:
        """The best value among rows; None where there is nothing to choose from."""
        values = [v for row in rows if (v := self.value(row)) is not None and math.isfinite(v)]
        if self.better is None or len(values) < 2:
            return None
        return min(values) if self.better == "lower" else max(values)


@dataclass(frozen=True)
class Cell:
    """What a table shows at one place."""

    text: str
    best: bool
    numeric: bool


@dataclass(frozen=True)
class Table:
    """Rows on one yardstick, sorted by factor and quality."""

    stage: str
    yardstick: Yardstick | None
    rows: list[Row]
    headline: Headline | None
    columns: list[Column]
    notes: list[str]

    @property
    def title(self) -> str:
        """What the distances were measured with."""
        return str(self.yardstick) if self.yardstick else "no distance measured"

    @property
    def best(self) -> Row | None:
        """The row with the lowest distance, where that means anything."""
        return best_row(self.rows, self.headline)

    def cells(self) -> list[list[Cell]]:
        """The table's text, row by row."""
        best = [column.best(self.rows) for column in self.columns]
        return [
            [
                Cell(column.text(row), top is not None and column.value(row) == top, column.numeric)
                for column, top in zip(self.columns, best, strict=True)
            ]
            for row in self.rows
        ]


@dataclass(frozen=True)
class DataGroup:
    """All runs on one data set. Runs on different data are never in one table."""

    name: str
    image_size: int | None
    fingerprint: str | None
    diffusion: list[Table]
    autoencoders: list[Table]
    notes: list[str]

    @property
    def title(self) -> str:
        """The data set, its image size, and the start of its fingerprint: two versions of a set share the name."""
        size = f", {self.image_size} px" if self.image_size else ""
        return f"{self.name}{size}" + (f" (data {self.fingerprint[:8]})" if self.fingerprint else "")

    def runs(self, stage: str) -> list[Run]:
        """The runs of one stage, each once, in the order of the tables."""
        tables = self.diffusion if stage == "diffusion" else self.autoencoders
        return list({row.run.folder: row.run for table in tables for row in table.rows}.values())


def group_by_data(runs: Iterable[Run]) -> list[DataGroup]:
    """Tables for every data set among the runs."""
    by_data: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        by_data.setdefault(tuple(run.data.get(key) for key in ("name", "image_size", "fingerprint")), []).append(run)
    groups = []
    for (name, image_size, fingerprint), members in sorted(by_data.items(), key=lambda item: str(item[0])):
        diffusion, autoencoders = (_tables(stage, members) for stage in ("diffusion", "autoencoder"))
        notes = [
            f"The tables of {what} are not comparable with each other ({differences})."
            for what, tables in (("diffusion models", diffusion), ("autoencoders", autoencoders))
            if (differences := _yardstick_differences(tables))
        ]
        groups.append(DataGroup(str(name), image_size, fingerprint, diffusion, autoencoders, notes))
    return groups


def number(value: float | None, at_least: int = 0) -> str:
    """Three significant digits, never an exponent, and `at_least` so many decimals."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return "not finite"
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 1
    return f"{value:.{max(at_least, min(decimals, 6), 0)}f}"


def percent(value: float | None) -> str:
    """A share as a whole percentage."""
    return ABSENT if value is None else f"{100 * value:.0f} %"


def count(value: float | None) -> str:
    """A large number in short: 79.0k, 1.40M."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value is not None and abs(value) >= size:
            return number(value / size) + unit
    return ABSENT if value is None else f"{value:g}"


def distance(measurement: Measurement | None, kind: Headline = "kid") -> str:
    """A distance with its standard error. Kernel distances are shown in thousandths, as is usual."""
    if measurement is None:
        return ABSENT
    scale = 1e3 if kind == "kid" else 1.0
    value, error = measurement.value * scale, (measurement.standard_error or 0.0) * scale
    if not error or not math.isfinite(value) or not math.isfinite(error):
        return number(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))  # two digits of the error say all that the value knows
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def guidance(row: Row) -> str:
    """Guidance scale, and whatever else the guidance was told."""
    told = row.manifest.get("guidance")
    if not isinstance(told, dict):
        return ABSENT if told is None else str(told)
    if told.get("name") == "NoGuidance":
        return "none"
    usual = {"start": 0.0, "stop": 1.0, "rescale": 0.0, "batched": True, "name": "ClassifierFree"}
    others = [
        f"{key} {value}"
        for key, value in told.items()
        if key != "scale" and value is not None and value != usual.get(key)
    ]
    return ", ".join([*([f"{told['scale']:g}"] if "scale" in told else []), *others]) or ABSENT


def _tables(stage: str, runs: Iterable[Run]) -> list[Table]:
    by_yardstick: dict[Yardstick | None, list[Row]] = {}
    for run in runs:
        if run.stage == stage:
            for row in rows_of(run):
                by_yardstick.setdefault(row.yardstick, []).append(row)
    tables = []
    for yardstick, unsorted in by_yardstick.items():
        headline = headline_of(unsorted)
        rows = sort_rows(unsorted, headline)
        columns = _diffusion_columns(rows, headline) if stage == "diffusion" else _autoencoder_columns(rows)
        tables.append(Table(stage, yardstick, rows, headline, columns, _notes(rows, headline)))
    # the table with the most rows is what a study is about; what was not measured comes last
    return sorted(tables, key=lambda table: (table.yardstick is None, -len(table.rows)))


def _diffusion_columns(rows: list[Row], headline: Headline | None) -> list[Column]:
    kind: Headline = headline or "kid"
    unit = "KID ×10³" if kind == "kid" else "FD"
    guided = any(row.manifest.get("guidance") is not None for row in rows)
    return [
        _RUN,
        _FACTOR,
        Column("sampler@steps", lambda row: row.setting or ABSENT, numeric=False),
        *([Column("guidance", guidance, meaning="Guidance scale.", secondary=True)] if guided else []),
        *_distance_columns(rows, headline),
        *(_floor_column(kind, unit, detail) for detail in _FLOORS),
        *(_floor_column("frechet", "FD", detail) for detail in _FLOORS if kind == "kid"),
        *(_pair_column(*names) for names in PAIRS if any(row.other(f"{names[0]}_k5") is not None for row in rows)),
        Column(
            "images/s",
            lambda row: number(row.speed("images_per_s")),
            lambda row: row.speed("images_per_s"),
            "higher",
            "Images sampled and decoded a second.",
        ),
        Column(
            "NFE",
            lambda row: str(row.manifest.get("nfe", ABSENT)),
            meaning="Evaluations of the denoiser for an image.",
        ),
        _CPU_MINUTES,
        _MINUTES,
        Column(
            "images seen",
            lambda row: count(row.run.cost.get("images")),
            meaning="Training images that went through the denoiser.",
            secondary=True,
        ),
        _PARAMETERS,
        _SEED,
    ]


def _autoencoder_columns(rows: list[Row]) -> list[Column]:
    def value(quantity: str) -> Callable[[Row], float | None]:
        return lambda row: found.value if (found := row.run.measured(quantity)) else None

    def own_distance(row: Row) -> float | None:
        found = row.run.measured_like("recon_fd_") or row.run.measured_like("recon_fid")
        return found.value if found else None

    psnr, ssim = value("recon_psnr"), value("recon_ssim")
    perplexity, usage = value("codebook_perplexity"), value("codebook_usage")
    codes = [
        Column(
            "perplexity",
            lambda row: number(perplexity(row)),
            perplexity,
            meaning="Of the codes that the images' latents are rounded to; at most their number.",
        ),
        Column("codes used", lambda row: percent(usage(row)), usage, meaning="Share of all codes.", secondary=True),
    ]
    return [
        _RUN,
        _FACTOR,
        Column("PSNR dB", lambda row: number(psnr(row)), psnr, "higher", "Peak signal-to-noise ratio."),
        Column("SSIM", lambda row: number(ssim(row)), ssim, "higher", "Structural similarity, 1 is identical."),
        Column(
            "rFD",
            lambda row: number(own_distance(row)),
            own_distance,
            "lower",
            "Fréchet distance of images and their own reconstructions (rFID, on Inception).",
        ),
        *(codes if any(perplexity(row) for row in rows) else []),
        *_distance_columns(rows, "kid"),
        _floor_column("kid", "KID ×10³", REAL),
        _CPU_MINUTES,
        _MINUTES,
        Column("images seen", lambda row: count(row.run.cost.get("images")), secondary=True),
        _PARAMETERS,
        _SEED,
    ]


def _distance_columns(rows: list[Row], headline: Headline | None) -> list[Column]:
    """KID, its N, and one column of Fréchet distances for every N: a column never mixes two of them."""
    kid = [
        Column(
            "KID ×10³",
            lambda row: distance(row.kid),
            lambda row: row.kid.value if row.kid else None,
            "lower",
            "Kernel distance in thousandths ± standard error; unbiased, so comparable across N.",
        ),
        Column(
            "N",
            lambda row: str((m and m.samples) or ABSENT) if (m := row.kid or row.frechet) else ABSENT,
            meaning="Images sampled for the distance.",
            secondary=True,
        ),
    ]
    kinds = {(m.quantity, m.samples) for row in rows if (m := row.frechet)}
    frechet = [_frechet_column(*kind) for kind in sorted(kinds, key=lambda kind: (kind[0], kind[1] or 0))]
    return [*frechet, *kid] if headline == "frechet" else [*kid, *frechet]


def _frechet_column(quantity: str, samples: int | None) -> Column:
    def mine(row: Row) -> Measurement | None:
        same = row.frechet and (row.frechet.quantity, row.frechet.samples) == (quantity, samples)
        return row.frechet if same else None

    return Column(
        f"{'FID' if quantity == 'fid' else 'FD'} (N={samples or 'unknown'})",
        lambda row: distance(mine(row), "frechet"),
        lambda row: found.value if (found := mine(row)) else None,
        "lower",
        "Fréchet distance; biased by N, so comparable within this column only.",
    )


def _pair_column(fidelity: str, diversity: str) -> Column:
    """Two of the four metrics of neighbours, which say little apart: fidelity alone rises under blur."""

    def text(row: Row) -> str:
        pair = [row.other(f"{name}_k5") for name in (fidelity, diversity)]
        return ABSENT if None in pair else " / ".join(number(value, 2) for value in pair)

    meaning = f"{fidelity.capitalize()} and {diversity} of 5 neighbours; both depend on N."
    return Column(f"{fidelity} / {diversity}", text, meaning=meaning, secondary=True)


def _floor(row: Row, kind: Headline, detail: str) -> str:
    return distance(row.floor(kind, detail), kind).partition(" ±")[0]  # its error is among the run's details


def _floor_column(kind: Headline, unit: str, detail: str) -> Column:
    name, meaning = _FLOORS[detail]
    return Column(f"floor: {name} {unit}", lambda row: _floor(row, kind, detail), meaning=meaning, secondary=True)


def _parameters(row: Row) -> str:
    parts = row.run.parameters
    own, other = ("denoiser", "autoencoder") if row.run.stage == "diffusion" else ("autoencoder", "")
    return " + ".join(count(parts[key]) for key in (own, other) if parts.get(key)) or ABSENT


def _notes(rows: list[Row], headline: Headline | None) -> list[str]:
    notes = []
    sizes = {row.frechet.samples for row in rows if row.frechet}
    if len(sizes) > 1:
        listed = ", ".join(str(size or "unknown") for size in sorted(sizes, key=lambda size: size or 0))
        notes.append(f"Fréchet distances are not comparable (N differs: {listed}): each N has its own column.")
    if tied := _within_error(rows, headline):
        notes.append(f"Within two standard errors of the best: {', '.join(tied)}.")
    conditions = {
        key: sorted({str(m.manifest[key]) for m in speeds if key in m.manifest})
        for key in CONDITIONS
        if (speeds := [m for row in rows if (m := row.run.measured("images_per_s", row.detail))])
    }
    if differing := [f"{key}: {', '.join(values)}" for key, values in conditions.items() if len(values) > 1]:
        notes.append(f"Speeds are not comparable ({'; '.join(differing)} differ).")
    if unknown := sorted({row.run.label for row in rows if row.run.autoencoder_cost_unknown}):
        notes.append(f"CPU minutes leave out an autoencoder whose cost is not recorded: {', '.join(unknown)}.")
    return notes


def _within_error(rows: list[Row], headline: Headline | None) -> list[str]:
    """Rows that the best one does not beat by more than chance."""
    best = best_row(rows, headline)
    top = best.quality(headline) if best else None
    if top is None or top.standard_error is None:
        return []
    tied = []
    for row in rows:
        quality = row.quality(headline)
        if row is best or quality is None or quality.standard_error is None:
            continue
        if quality.value - top.value < 2 * math.hypot(top.standard_error, quality.standard_error):
            tied.append(row.label)
    return tied


def _yardstick_differences(tables: list[Table]) -> str:
    sticks = [table.yardstick for table in tables if table.yardstick]
    values = {f.name: dict.fromkeys(str(getattr(stick, f.name)) for stick in sticks) for f in fields(Yardstick)}
    return "; ".join(f"{name.replace('_', ' ')}: {', '.join(v)}" for name, v in values.items() if len(v) > 1)


_FLOORS = {
    RECONSTRUCTION: (
        "recon.",
        "The same distance for images that only went through the autoencoder: no sampler gets below it.",
    ),
    REAL: ("real", "The same distance of further real images, as many, that are not among the reference."),
}
_RUN = Column("run", lambda row: row.run.label, numeric=False)
_FACTOR = Column("f", lambda row: f"f{row.run.factor}" if row.run.factor else ABSENT, meaning="Downsampling factor.")
_CPU_MINUTES = Column(
    "CPU min",
    lambda row: ("≥ " if row.run.autoencoder_cost_unknown else "") + number(row.cpu_minutes),
    meaning="Processor minutes of training, the autoencoder's included.",
)
_MINUTES = Column(
    "min",
    lambda row: ABSENT if (seconds := row.run.total_cost("seconds")) is None else number(seconds / 60),
    meaning="Minutes of training on the clock, the autoencoder's included.",
    secondary=True,
)
_PARAMETERS = Column("parameters", _parameters, meaning="Denoiser + autoencoder.", secondary=True)
_SEED = Column("seed", lambda row: ABSENT if row.run.seed is None else str(row.run.seed), secondary=True)
