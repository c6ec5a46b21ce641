"""Rows of the comparison, and which of them may stand side by side.

Two distances may be compared when they were measured with the same yardstick: features, input size, resize and
reference images. The Fréchet distance is moreover biased by an amount that depends on the number of samples N, so
two of them may be compared at equal N only; the kernel distance (KID) is unbiased and may be compared across N.
See Bińkowski et al. 2018, "Demystifying MMD GANs", section 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from ldmlab.metrics.names import ENOUGH_FOR_FRECHET
from ldmlab.tasks.comparison.runs import Measurement, Run

T = TypeVar("T")

RECONSTRUCTION, REAL, BICUBIC, PREVIEW = "reconstruction", "real", "bicubic", "preview"
REFERENCES = (REAL, RECONSTRUCTION, BICUBIC)
"""What sampled images are held against, measured under these names."""

FIDELITY = ("oracle_", "probe_", "super_resolution_", "inpainting_", "clip_score_")
"""How the names of metrics begin that say whether images show what the model was told."""

Headline = Literal["kid", "frechet"]
NAMES: dict[Headline, str] = {"kid": "KID ×10³", "frechet": "Fréchet distance"}
SCALES: dict[Headline, float] = {"kid": 1e3, "frechet": 1.0}
"""Kernel distances are shown in thousandths, as is usual."""


@dataclass(frozen=True)
class Yardstick:
    """What a distance was measured with. Distances with different yardsticks are not comparable."""

    split: str
    extractor: str
    input_size: int | None
    resize: str | None
    reference: str | None
    reference_hash: str | None

    @classmethod
    def of(cls, measurement: Measurement) -> Yardstick:
        """The yardstick in the measurement's manifest; without a manifest, the features that its name carries."""
        manifest = measurement.manifest
        features = measurement.quantity.partition("_")[2] or "inception"
        return cls(
            split=measurement.split,
            extractor=str(manifest.get("extractor", features)),
            input_size=manifest.get("input_size"),
            resize=manifest.get("resize"),
            reference=manifest.get("reference"),
            reference_hash=manifest.get("reference_hash"),
        )

    @property
    def features(self) -> tuple[Any, ...]:
        """The part that a floor must share: a floor has images of its own, and so another reference."""
        return self.split, self.extractor, self.input_size, self.resize

    def __str__(self) -> str:
        size = f" at {self.input_size} px" if self.input_size else ""
        resize = f", {self.resize} resize" if self.resize else ""
        digest = f" ({str(self.reference_hash)[:8]})" if self.reference_hash else ""
        return f"{self.extractor} features{size}{resize}, against {self.reference or self.split}{digest}"


@dataclass(frozen=True)
class Row:
    """One run with one sampler setting, or one autoencoder's reconstructions, on one yardstick."""

    run: Run
    detail: str
    yardstick: Yardstick | None
    kid: Measurement | None = None
    frechet: Measurement | None = None

    @property
    def labels(self) -> list[str]:
        """What each of its runs is called, which is one."""
        return [self.run.label]

    @property
    def manifest(self) -> dict[str, Any]:
        """How the images were made: from whichever measurement of this setting has a manifest."""
        candidates = (self.kid, self.frechet, *(m for m in self.run.measurements.values() if m.detail == self.detail))
        return next((m.manifest for m in candidates if m and m.manifest), {})

    @property
    def setting(self) -> str:
        """Sampler and steps, `euler@20`; with the metric's own detail where that says something else."""
        sampler, steps = self.manifest.get("sampler"), self.manifest.get("steps")
        if not sampler:
            return self.detail
        weights = " (no EMA)" if self.manifest.get("ema") is False else ""
        more = "" if self.detail == f"{sampler}{steps}".lower() else f" ({self.detail})"
        return f"{sampler}@{steps}{weights}{more}"

    @property
    def series(self) -> str:
        """The sampler and all that was set but the number of steps: rows of one series make a curve."""
        sampler, steps = str(self.manifest.get("sampler", "")).lower(), self.manifest.get("steps")
        start = f"{sampler}{steps}"
        return sampler + self.detail[len(start) :] if sampler and self.detail.startswith(start) else self.detail

    @property
    def label(self) -> str:
        """The run, and its sampler setting where there is one."""
        return self.run.label if self.run.stage == "autoencoder" else f"{self.run.label} {self.setting}".strip()

    def quality(self, headline: Headline | None) -> Measurement | None:
        """The measurement that rows are sorted and plotted by."""
        return None if headline is None else self.kid if headline == "kid" else self.frechet

    def floor(self, headline: Headline, detail: str) -> Measurement | None:
        """The same distance for reconstructions or for real images: what no sampler of this run can beat.

        A Fréchet distance at another N is no floor, and is not returned.
        """
        if self.yardstick is None or is_floor(self.detail, detail):
            return None
        floors = [
            measurement
            for measurement in self.run.measurements.values()
            if distance_kind(measurement) == headline
            and is_floor(measurement.detail, detail)
            and Yardstick.of(measurement).features == self.yardstick.features
            and (headline == "kid" or (self.frechet and measurement.samples == self.frechet.samples))
        ]
        # one taken to the very same reference images, where there is one
        return max(floors, key=lambda floor: Yardstick.of(floor) == self.yardstick, default=None)

    def other(self, quantity: str) -> float | None:
        """Another metric of these images on this yardstick, for example `recall_k5`."""
        return next((v for name, v in self.others.items() if name == quantity or name.startswith(f"{quantity}_")), None)

    @property
    def others(self) -> dict[str, float | None]:
        """What was measured beside the two distances: precision, recall, Inception score, ..."""
        return {
            measurement.quantity: _value(measurement)
            for measurement in self.run.measurements.values()
            if measurement.detail == self.detail
            and measurement.split != "speed"
            and distance_kind(measurement) is None
            and Yardstick.of(measurement) == self.yardstick
        }

    @property
    def fidelity(self) -> dict[str, Measurement]:
        """How well these images show what the model was told, by what was looked at: "oracle_caption_colour"."""
        found = (m for m in self.run.measurements.values() if m.detail == self.detail)
        return {m.quantity: m for m in found if m.quantity.startswith(FIDELITY)}

    def fidelity_of(self, quantity: str, reference: str) -> Measurement | None:
        """The same of real images, of reconstructions or of what interpolation makes."""
        own = self.fidelity.get(quantity)
        other_images = re.search(r"-n\d+-seed\d+.*$", self.detail)
        suffix = other_images[0] if other_images else ""
        return None if own is None else self.run.measurements.get(f"{own.split}/{quantity}@{reference}{suffix}")

    @property
    def own_distance(self) -> Measurement | None:
        """The Fréchet distance between the run's images and their own reconstructions (rFID, on Inception)."""
        return self.run.measured_like("recon_fd_") or self.run.measured_like("recon_fid")

    def speed(self, quantity: str) -> float | None:
        """A measurement of speed for this sampler setting, for example `images_per_s`."""
        return _value(self.run.measurements.get(f"speed/{quantity}@{self.detail}"))

    @property
    def cpu_minutes(self) -> float | None:
        """Processor time of training, the autoencoder's included."""
        return self.run.total("CPU minutes")

    def record(self) -> dict[str, Any]:
        """The row for comparison.json: plain values, nothing rounded."""
        run = self.run
        floors = {
            f"{kind}_{detail}": _value(self.floor(kind, detail))
            for kind in ("kid", "frechet")
            for detail in (RECONSTRUCTION, REAL)
        }
        return {
            "name": run.label,
            "study": run.study,
            "stage": run.stage,
            "seed": run.seed,
            "factor": run.factor,
            "choices": run.choices,
            "data": run.data,
            "yardstick": {f.name: getattr(self.yardstick, f.name) for f in fields(Yardstick)}
            if self.yardstick
            else None,
            "setting": self.setting,
            **{key: self.manifest.get(key) for key in ("sampler", "steps", "nfe", "guidance", "ema")},
            "kid": _value(self.kid),
            "kid_standard_error": _finite(self.kid.standard_error) if self.kid else None,
            "kid_samples": self.kid.samples if self.kid else None,
            "frechet": _value(self.frechet),
            "frechet_name": self.frechet.name if self.frechet else None,
            "frechet_samples": self.frechet.samples if self.frechet else None,
            **floors,
            **{key: _value(run.measured(f"recon_{key}")) for key in ("psnr", "ssim")},
            "recon_fd": _value(self.own_distance),
            **{key: _value(run.measured(key)) for key in ("codebook_perplexity", "codebook_usage")},
            **{key: self.speed(key) for key in ("images_per_s", "latency_s", "decoder_images_per_s", "peak_memory_mb")},
            "others": self.others,
            "fidelity": {name: _value(measurement) for name, measurement in self.fidelity.items()},
            "fidelity_references": {
                reference: {
                    name: _value(found) for name in self.fidelity if (found := self.fidelity_of(name, reference))
                }
                for reference in REFERENCES
            },
            "cpu_minutes": self.cpu_minutes,
            "autoencoder_cost_unknown": run.autoencoder_cost_unknown,
            "cost": run.cost,
            "cost_autoencoder": run.cost_autoencoder,
            "parameters": run.parameters,
        }


def by_series(items: Iterable[T], row_of: Callable[[T], Row]) -> dict[str, list[T]]:
    """Items whose rows differ in the number of steps alone, by the name of what those share.

    The name says the run where there are several.
    """
    ordered = sorted(items, key=lambda item: (row_of(item).run.label, row_of(item).series))
    one_run = len({row_of(item).run.label for item in ordered}) == 1
    found: dict[str, list[T]] = {}
    for item in ordered:
        row = row_of(item)
        found.setdefault(row.series if one_run else f"{row.run.label} {row.series}", []).append(item)
    return found


def is_floor(detail: str, *floors: str) -> bool:
    """Whether `detail` names one of `floors`, of the run's own images or of others: "real", "real-n5000-seed0"."""
    return any(detail == floor or detail.startswith(f"{floor}-") for floor in floors)


def distance_kind(measurement: Measurement) -> Headline | None:
    """Whether a measurement is a kernel or a Fréchet distance (`fid` is the Fréchet distance on Inception)."""
    kinds: dict[str, Headline] = {"kid": "kid", "fd": "frechet", "fid": "frechet"}
    return None if measurement.split == "speed" else kinds.get(measurement.quantity.partition("_")[0])


def rows_of(run: Run) -> list[Row]:
    """One row per sampler setting and yardstick; a run that measured nothing still has a row."""
    details = [RECONSTRUCTION] if run.stage == "autoencoder" else _settings(run)
    rows: list[Row] = []
    for detail in details:
        distances: dict[Yardstick, dict[str, Measurement]] = {}
        for measurement in run.measurements.values():
            kind = distance_kind(measurement)
            if kind and measurement.detail == detail:
                distances.setdefault(Yardstick.of(measurement), {})[kind] = measurement
        rows += [Row(run, detail, stick, found.get("kid"), found.get("frechet")) for stick, found in distances.items()]
        if not distances:
            rows.append(Row(run, detail, None))
    return rows


def headline_of(rows: Sequence[Row]) -> Headline | None:
    """KID, unless every row has a Fréchet distance at one and the same N of at least `ENOUGH_FOR_FRECHET`.

    None where neither may be put on one axis.
    """
    sizes = {row.frechet.samples if row.frechet else None for row in rows}
    names = {row.frechet.quantity for row in rows if row.frechet}
    one_size = len(sizes) == len(names) == 1 and None not in sizes
    if one_size and all(size and size >= ENOUGH_FOR_FRECHET for size in sizes):
        return "frechet"
    if any(row.kid for row in rows):
        return "kid"
    return "frechet" if one_size else None


def sort_rows(rows: Iterable[Row], headline: Headline | None) -> list[Row]:
    """By factor, then quality; what was not measured, or is not a number, comes last."""

    def key(row: Row) -> tuple[float, float, str]:
        quality = row.quality(headline)
        factor = math.inf if row.run.factor is None else row.run.factor
        return factor, quality.value if quality and math.isfinite(quality.value) else math.inf, row.label

    return sorted(rows, key=key)


def best_row(rows: Iterable[Row], headline: Headline | None) -> Row | None:
    """The row with the lowest distance."""
    scored = [(q.value, row) for row in rows if (q := row.quality(headline)) and math.isfinite(q.value)]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def _settings(run: Run) -> list[str]:
    """The sampler settings that a run was measured with, in the order of its summary."""
    aside = ("", PREVIEW)
    measured = (m for m in run.measurements.values() if m.split == "speed" or distance_kind(m))
    details = dict.fromkeys(m.detail for m in measured if m.detail not in aside and not is_floor(m.detail, *REFERENCES))
    return list(details) or [""]


def _value(measurement: Measurement | None) -> float | None:
    return _finite(measurement.value) if measurement else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
