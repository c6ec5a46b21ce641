"""Columns of the comparison's tables: what a row shows, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from ldmlab.tasks.comparison.rows import BICUBIC, NAMES, REAL, RECONSTRUCTION, SCALES, Headline, Row
from ldmlab.tasks.comparison.runs import Measurement

T = TypeVar("T")

ABSENT = "–"
PAIRS = (("precision", "recall"), ("density", "coverage"))
"""Fidelity and diversity, of 5 neighbours."""


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column: `text` is what a cell shows, `value` what "best" is decided by and means are taken of.

    `secondary` columns give way when a terminal is narrow.
    """

    heading: str
    text: Callable[[T], str]
    value: Callable[[T], float | None] = lambda row: None
    better: Literal["lower", "higher"] | None = None
    meaning: str = ""
    secondary: bool = False
    numeric: bool = True

    def best(self, rows: Sequence[T]) -> float | None:
        """The best value among rows; None where there is nothing to choose from."""
        values = [v for row in rows if (v := self.value(row)) is not None and math.isfinite(v)]
        if self.better is None or len(values) < 2:
            return None
        return min(values) if self.better == "lower" else max(values)


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
    """A distance with its standard error, in the unit of `SCALES`."""
    if measurement is None:
        return ABSENT
    scale = SCALES[kind]
    return plus_minus(measurement.value * scale, (measurement.standard_error or 0.0) * scale)


def plus_minus(value: float, error: float) -> str:
    """A value with its error, where there is one."""
    if not error or not math.isfinite(value) or not math.isfinite(error):
        return number(value)
    decimals = min(max(0, 1 - math.floor(math.log10(error))), 6)  # two digits of the error say all that the value knows
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


def diffusion_columns(rows: list[Row], headline: Headline | None) -> list[Column[Row]]:
    """The columns of a table of diffusion models."""
    kind: Headline = headline or "kid"
    unit = NAMES["kid"] if kind == "kid" else "FD"
    guided = any(row.manifest.get("guidance") is not None for row in rows)
    return [
        _RUN,
        _FACTOR,
        Column("sampler@steps", lambda row: row.setting or ABSENT, numeric=False),
        *([Column("guidance", guidance, meaning="Guidance scale.", secondary=True)] if guided else []),
        *_distance_columns(rows, headline),
        *_fidelity_columns(rows),
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


def autoencoder_columns(rows: list[Row]) -> list[Column[Row]]:
    """The columns of a table of autoencoders."""

    def value(quantity: str) -> Callable[[Row], float | None]:
        return lambda row: found.value if (found := row.run.measured(quantity)) else None

    own_kinds = sorted({kind for row in rows if (kind := own_distance_kind(row))})
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
        *(_own_distance_column(*kind) for kind in own_kinds),
        *(codes if any(perplexity(row) for row in rows) else []),
        *_distance_columns(rows, "kid"),
        _floor_column("kid", NAMES["kid"], REAL),
        _CPU_MINUTES,
        _MINUTES,
        Column("images seen", lambda row: count(row.run.cost.get("images")), secondary=True),
        _PARAMETERS,
        _SEED,
    ]


def _distance_columns(rows: list[Row], headline: Headline | None) -> list[Column[Row]]:
    """KID, its N, and one column of Fréchet distances for every N: a column never mixes two of them."""
    kid = [
        Column[Row](
            NAMES["kid"],
            lambda row: distance(row.kid),
            lambda row: SCALES["kid"] * row.kid.value if row.kid else None,
            "lower",
            "Kernel distance in thousandths ± standard error; unbiased, so comparable across N.",
        ),
        Column[Row](
            "N",
            lambda row: str((m and m.samples) or ABSENT) if (m := row.kid or row.frechet) else ABSENT,
            meaning="Images sampled for the distance.",
            secondary=True,
        ),
    ]
    kinds = {(m.quantity, m.samples) for row in rows if (m := row.frechet)}
    frechet = [_frechet_column(*kind) for kind in sorted(kinds, key=lambda kind: (kind[0], kind[1] or 0))]
    return [*frechet, *kid] if headline == "frechet" else [*kid, *frechet]


def _fidelity_columns(rows: list[Row]) -> list[Column[Row]]:
    """One column for everything that was looked at in images that were told something, beside what real ones reach."""
    return [_fidelity_column(name) for name in dict.fromkeys(name for row in rows for name in row.fidelity)]


def _fidelity_column(quantity: str) -> Column[Row]:
    def mine(row: Row) -> float | None:
        return found.value if (found := row.fidelity.get(quantity)) else None

    def text(row: Row) -> str:
        beside = {"of": (RECONSTRUCTION, REAL), "bicubic": (BICUBIC,)}
        shown = number(mine(row))
        for word, references in beside.items():
            found = next((m for name in references if (m := row.fidelity_of(quantity, name))), None)
            shown += "" if found is None else f" ({word} {number(found.value)})"
        return shown

    heading = quantity.removeprefix("oracle_").replace("super_resolution", "SR").replace("_", " ")
    return Column(
        heading,
        text,
        mine,
        "lower" if quantity.endswith("error") or "_lpips_" in quantity else "higher",
        "What the model was told and images show, in brackets what reconstructions of real images, or interpolation, "
        "reach.",
        secondary=not (quantity in _MAIN_FIDELITY or quantity.startswith("clip_score")),
    )


def _frechet_column(quantity: str, samples: int | None) -> Column[Row]:
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


def own_distance_kind(row: Row) -> tuple[str, int] | None:
    """The name and N of the distance between a run's images and their own reconstructions."""
    found = row.own_distance
    return (found.quantity, found.samples or 0) if found else None


def _own_distance_column(quantity: str, samples: int) -> Column[Row]:
    def mine(row: Row) -> float | None:
        same = row.own_distance and own_distance_kind(row) == (quantity, samples)
        return row.own_distance.value if row.own_distance and same else None

    return Column(
        f"{'rFID' if quantity == 'recon_fid' else 'rFD'} (N={samples or 'unknown'})",
        lambda row: number(mine(row)),
        mine,
        "lower",
        "Fréchet distance of images and their own reconstructions; comparable within this column only.",
    )


def _pair_column(fidelity: str, diversity: str) -> Column[Row]:
    """Two of the four metrics of neighbours, which say little apart: fidelity alone rises under blur."""

    def text(row: Row) -> str:
        pair = [row.other(f"{name}_k5") for name in (fidelity, diversity)]
        return ABSENT if None in pair else " / ".join(number(value, 2) for value in pair)

    meaning = f"{fidelity.capitalize()} and {diversity} of 5 neighbours; both depend on N."
    return Column(f"{fidelity} / {diversity}", text, meaning=meaning, secondary=True)


def _floor(row: Row, kind: Headline, detail: str) -> str:
    return distance(row.floor(kind, detail), kind).partition(" ±")[0]  # its error is among the run's details


def _floor_column(kind: Headline, unit: str, detail: str) -> Column[Row]:
    name, meaning = _FLOORS[detail]
    return Column(f"floor: {name} {unit}", lambda row: _floor(row, kind, detail), meaning=meaning, secondary=True)


def _parameters(row: Row) -> str:
    parts = row.run.parameters
    own, other = ("denoiser", "autoencoder") if row.run.stage == "diffusion" else ("autoencoder", "")
    return " + ".join(count(parts[key]) for key in (own, other) if parts.get(key)) or ABSENT


_FLOORS = {
    RECONSTRUCTION: (
        "recon.",
        "The same distance for images that only went through the autoencoder: no sampler gets below it.",
    ),
    REAL: ("real", "The same distance of further real images, as many, that are not among the reference."),
}
_MAIN_FIDELITY = (
    "oracle_label", "oracle_caption_shape", "oracle_caption_colour", "oracle_boxes_iou", "oracle_semantic_iou",
    "probe_label", "super_resolution_psnr", "inpainting_inside_psnr",
)  # fmt: skip
"""Of many that say nearly the same, those that are shown where there is little room."""
_RUN = Column[Row]("run", lambda row: row.run.label, numeric=False)
_FACTOR = Column[Row](
    "f", lambda row: f"f{row.run.factor}" if row.run.factor else ABSENT, meaning="Downsampling factor."
)
_CPU_MINUTES = Column[Row](
    "CPU min",
    lambda row: ("≥ " if row.run.autoencoder_cost_unknown else "") + number(row.cpu_minutes),
    meaning="Processor minutes of training, the autoencoder's included.",
)
_MINUTES = Column[Row](
    "min",
    lambda row: number(row.run.total("minutes")),
    meaning="Minutes of training on the clock, the autoencoder's included.",
    secondary=True,
)
_PARAMETERS = Column[Row]("parameters", _parameters, meaning="Denoiser + autoencoder.", secondary=True)
_SEED = Column[Row]("seed", lambda row: ABSENT if row.run.seed is None else str(row.run.seed), secondary=True)
