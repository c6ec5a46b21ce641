"""`ldmlab score`: images of any origin against a data set, by the metrics that runs are measured with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldmlab import processes
from ldmlab.data.loader import random_subset
from ldmlab.errors import UserError
from ldmlab.metrics.extractors import Features
from ldmlab.metrics.names import LEAST_SAMPLES
from ldmlab.metrics.references import IMAGES, read_arrays, to_channels_first
from ldmlab.tasks import build, checks, measure
from ldmlab.tasks.console import say, say_table, track
from ldmlab.tasks.quality import Metrics, gather, quality_of
from ldmlab.tasks.run import provenance, write_text

Config = dict[str, Any]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GRID = "grid.png"  # what `ldmlab sample` puts beside its images


def score(config: Config) -> Metrics:
    """Measures the images in a folder, or in the `arr_0` of an .npz file; prints the values and writes them down.

    N is the number of images, or `metrics.samples` of them at random; the reference and the floor of real images have
    as many, or as many as the data's split has.
    """
    checks.check_measuring(config, nullable=("metrics.samples",))
    checks.check_data_path(config)
    images = open_images(config["images"])
    seed, asked = config["metrics"]["seed"], config["metrics"]["samples"]
    rows = sorted(random_subset(len(images), len(images) if asked in (None, "all") else asked, seed))
    if len(rows) < LEAST_SAMPLES:
        raise UserError(f"images: {len(rows)} in {config['images']}, measuring needs {LEAST_SAMPLES} or more")
    config["metrics"]["samples"] = len(rows)
    checks.check_metrics(config)
    output = Path(config["output"] or f"{Path(config['images'])}.scores.json")
    device = processes.join(build.best_device())
    data = build.build_data(config)
    images.check_size(data.info.image_size)
    quality = quality_of(config, data, device)
    if quality.clip_score is not None:
        raise UserError("metrics.clip_score: these images have no captions; leave it out")
    own = [rows[place] for place in processes.share(len(rows))]
    starts = range(0, len(own), quality.batch_size)
    own_features = Features.cat(
        [
            quality.extractor(images.read(own[start : start + quality.batch_size])).to("cpu")
            for start in track(starts, len(starts), f"features of {len(rows):,} images")
        ]
    )
    features = gather(own_features, len(rows))
    metrics = quality.compare(features, "images", {"images": str(config["images"])})
    metrics |= measure.measure_real(quality)
    if processes.rank() == 0:
        show(metrics)
        record = {"images": str(config["images"]), "metrics": metrics, **provenance()}
        try:
            write_text(output, json.dumps(record, indent=1))
        except OSError as error:
            raise UserError(f"output: cannot write {output} ({error.strerror}): choose another place") from error
        say(f"{measure.headline(metrics, 'images')}; all values with their manifests: {output}")
    return metrics


class ImageFiles:
    """Image files of a folder and its subfolders, in the order of their names."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.name != GRID)

    def __len__(self) -> int:
        return len(self.paths)

    def check_size(self, size: int) -> None:
        """Raises UserError if the first image is not of `size`; `read` looks at the others."""
        if self.paths:
            self.size = size
            self.read([0])

    def read(self, rows: Sequence[int]) -> Tensor:
        """Images uint8 (B, 3, size, size)."""
        return torch.stack([self._read(self.paths[row]) for row in rows])

    def _read(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise UserError(f"images: {path} cannot be read ({str(error).splitlines()[0]})") from error
        check_size(pixels.shape[:2], self.size, path)
        return torch.from_numpy(pixels).permute(2, 0, 1)


class ImageArray:
    """Images in the `arr_0` of an .npz file, as ADM's code writes its samples."""

    def __init__(self, path: Path):
        self.path = path
        arrays = read_arrays(path, "images")
        if IMAGES not in arrays:
            raise UserError(f"images: {path} has no images: there is no {IMAGES}")
        self.images = to_channels_first(arrays[IMAGES], path)

    def __len__(self) -> int:
        return len(self.images)

    def check_size(self, size: int) -> None:
        """Raises UserError if the images are not of `size`."""
        check_size(self.images.shape[2:], size, self.path)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Images uint8 (B, 3, size, size)."""
        return self.images[list(rows)]


def open_images(path: str) -> ImageFiles | ImageArray:
    """The images in a folder or an .npz file."""
    place = Path(path)
    if place.is_dir():
        return ImageFiles(place)
    if place.suffix == ".npz" and place.is_file():
        return ImageArray(place)
    raise UserError(f"images: {place} is neither a folder of images nor an .npz file")


def check_size(found: Sequence[int], size: int, path: Path) -> None:
    """Raises UserError for images of another size than the data's: resizing would be measured too."""
    if tuple(found) != (size, size):
        raise UserError(
            f"images: {path} has {found[1]} x {found[0]} pixels, the data {size} x {size}; set data.image_size"
        )


def show(metrics: Metrics) -> None:
    """The values beside those of real images."""

    def text(metric: Config | None) -> str:
        if metric is None:
            return ""
        error = f" ± {metric['standard_error']:.2g}" if "standard_error" in metric else ""
        return f"{metric['value']:.4g}{error}"

    stems = [name.removesuffix("@images") for name in metrics if name.endswith("@images")]
    rows = [
        (stem, text(metrics[f"{stem}@images"]), text(measure.floor_of(metrics, f"{stem}@images"))) for stem in stems
    ]
    say_table(("metric", "images", "real"), rows)
