"""Which real images a run is compared with, and how: one reference for everything that the run measures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldmlab import processes
from ldmlab.conditioners.base import Conditioners
from ldmlab.data.cache_folder import make_once, new_folder
from ldmlab.data.loader import images_at_once, in_order, random_subset
from ldmlab.errors import UserError
from ldmlab.metrics.clip_score import CLIPScore
from ldmlab.metrics.extractors import FeatureExtractor, Features, check_judge, to_uint8
from ldmlab.metrics.names import LEAST_SAMPLES
from ldmlab.metrics.reconstruction import LPIPS
from ldmlab.metrics.references import Reference, read_npz
from ldmlab.metrics.suite import compare_with
from ldmlab.tasks import build
from ldmlab.tasks.console import track
from ldmlab.types import Batch, ImageData, ImageSource

Config = dict[str, Any]

Metrics = dict[str, dict[str, Any]]
"""{name: {"value", "standard_error" (optional), "manifest"}}, as summary.json holds them."""

EXTRACTION_BATCH = 64  # at most: extractors enlarge small images
FEATURES_VERSION = 1
"""Part of the key of cached features: another one whenever the code gives other features of the same images."""


@dataclass
class Quality:
    """What distances are taken to, and with which eyes.

    `rows` are N images of `split`: generated images get their conditions, reconstructions are made of them. The
    reference are these and further ones of the split, `reference_rows`, or else those `published` in a file.
    `floor_rows` are N further real images (fewer if there are not so many), disjoint from the reference: their
    distance, and that of their reconstructions, are the floors that generated images cannot go below.
    """

    data: ImageData
    extractor: FeatureExtractor
    cache_dir: Path
    device: torch.device
    seed: int
    split: str
    rows: tuple[int, ...]
    reference_rows: tuple[int, ...]
    floor_split: str
    floor_rows: tuple[int, ...]
    wanted: tuple[str, ...]
    published: Reference | None = None
    lpips: LPIPS | None = None
    clip_score: CLIPScore | None = None
    made: Reference | None = field(default=None, repr=False)

    @classmethod
    def choose(
        cls,
        data: ImageData,
        extractor: FeatureExtractor,
        cache_dir: Path,
        device: torch.device,
        samples: int | str,
        split: str,
        seed: int,
        wanted: Sequence[str],
        reference_samples: int | str | None = None,
        published: Reference | None = None,
        **others: Any,
    ) -> Quality:
        """Draws the images at random from `split`; the floor's from what is left of it, or else from the other split.

        N is `samples`, or all images of the split with "all" or if it has fewer; the reference has N images too unless
        `reference_samples` is another number, or "all".
        """
        length = len(data.split(split))
        n = number_of(samples, length)
        if n < LEAST_SAMPLES:
            raise UserError(
                f"metrics: the {split} split has {length} images, measuring needs {LEAST_SAMPLES} or more: "
                "hold out more of the data with data.val_fraction, or add images"
            )
        m = number_of(reference_samples or n, length)
        order = random_subset(length, length, seed)
        other = "train" if split == "val" else "val"
        if published is not None:
            # nobody knows which images a file was made of, unless it says so: most are of training images
            floor_split = "train" if published.made_of == f"{data.info.name}/val" else "val"
            floor_rows = random_subset(len(data.split(floor_split)), n, seed)
        elif length >= max(n, m) + n:
            floor_split, floor_rows = split, order[max(n, m) : max(n, m) + n]
        else:
            floor_split, floor_rows = other, random_subset(len(data.split(other)), n, seed)
        if len(floor_rows) < LEAST_SAMPLES:
            raise UserError(
                f"metrics: the {floor_split} split has {len(floor_rows)} images for the floor of real images, which "
                f"needs {LEAST_SAMPLES} or more: fewer metrics.samples leave some of the {split} split for it"
            )
        return cls(
            data, extractor, cache_dir, device, seed, split, tuple(order[:n]), tuple(order[:m]), floor_split,
            tuple(floor_rows), tuple(wanted), published, **others,
        )  # fmt: skip

    def fewer(self, samples: int, wanted: Sequence[str]) -> Quality:
        """The same with the first `samples` images only and fewer distances, for a cheap look."""
        return replace(
            self,
            rows=self.rows[:samples],
            floor_rows=self.floor_rows[:samples],
            reference_rows=self.reference_rows[:samples],
            wanted=tuple(wanted),
            clip_score=None,
            made=None,
        )

    @property
    def samples(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def batch_size(self) -> int:
        """How many images are looked at at once."""
        return images_at_once(self.data.info.image_size, EXTRACTION_BATCH)

    def batches(self, source: ImageSource, rows: Sequence[int], title: str) -> Iterable[Batch]:
        """Images `rows` of a source with what is known of them, as many at once as there are to be."""
        count = -(-len(rows) // self.batch_size)
        return track(in_order(source, rows, self.batch_size), count, title)

    @property
    def prefix(self) -> str:
        """What the names of distances begin with: the split, or the reference file's name."""
        return self.published.title if self.published else self.split

    def refuse(self, trained_against: Sequence[str]) -> None:
        """Raises UserError if a network that judges is among those, by SHA-256, that the run was trained against."""
        judges = {"features": self.extractor, "lpips": self.lpips, "clip_score": self.clip_score}
        for name, judge in judges.items():
            if judge is not None:
                check_judge(f"metrics.{name}", judge.hash, trained_against)

    def examples(self, rows: Sequence[int], conditioner: Conditioners) -> Batch:
        """Images `rows` (positions among the N) with what the data and a model's conditioners say of them."""
        batch = self.data.split(self.split).__getitems__([self.rows[row] for row in rows])
        told = conditioner.tell(batch, [seed_of(self.seed, row) for row in rows])
        return to_device({**batch, **told}, self.device)

    def features(self, images: Iterable[Tensor]) -> Features:
        """Features of batches of images in [-1, 1]."""
        return Features.cat([self.extractor(to_uint8(batch)).to("cpu") for batch in images])

    def reference(self) -> Reference:
        """The reference as the extractor sees it, made once and kept on disk."""
        if self.published is not None:
            return self.published
        if self.made is None:
            features = self.kept_features(self.split, self.reference_rows)
            title = f"{self.data.info.name}/{self.split}"
            self.made = Reference(title, len(features), self._key(self.split, self.reference_rows), features)
        return self.made

    def own_features(self) -> Features:
        """Features of the N images: the first of the reference, unless that is published."""
        if self.published is None:
            reference = self.reference().features
            assert reference is not None
            return reference[: self.samples]
        return self.kept_features(self.split, self.rows)

    def floor_features(self) -> Features:
        """Features of the further real images, made once and kept on disk."""
        return self.kept_features(self.floor_split, self.floor_rows)

    @property
    def reference_folder(self) -> Path:
        """Where the reference's features are kept."""
        return self._folder(self.split, self.reference_rows)

    def _folder(self, split: str, rows: Sequence[int]) -> Path:
        return self.cache_dir / "reference" / self._key(split, rows)

    def kept_features(self, split: str, rows: Sequence[int]) -> Features:
        """Features of real images, made once and kept on disk."""
        folder = self._folder(split, rows)

        def make() -> None:
            title = f"features of {len(rows):,} real images ({split})"
            features = self.features_of_rows(self.data.split(split), rows, title)
            if processes.rank() == 0:
                self._keep(folder, split, features)
            processes.wait()

        make_once(folder, make, together=True)
        kept = torch.load(folder / "features.pt", weights_only=True)
        return Features(kept["pooled"], kept["spatial"])

    def _keep(self, folder: Path, split: str, features: Features) -> None:
        tensors = {"pooled": features.pooled, "spatial": features.spatial}
        nbytes = sum(4 * tensor.numel() for tensor in tensors.values() if tensor is not None)
        manifest = {
            "data": self.data.info.name,
            "data_fingerprint": self.data.info.fingerprint,
            "image_size": self.data.info.image_size,
            "split": split,
            "samples": len(features),
            "seed": self.seed,
            **self.extractor.manifest(),
        }
        with new_folder(folder, nbytes=nbytes) as building:
            torch.save(tensors, building / "features.pt")
            (building / "reference.json").write_text(json.dumps(manifest, indent=1))

    def features_of_rows(
        self,
        source: ImageSource,
        rows: Sequence[int],
        title: str,
        change: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> Features:
        """Features of images `rows` of a source, after `change`; processes share the work."""
        own = [rows[place] for place in processes.share(len(rows))]
        images = (change(batch["image"].to(self.device)) for batch in self.batches(source, own, title))
        return gather(self.features(images), len(rows))

    def _key(self, split: str, rows: Sequence[int]) -> str:
        parts = [FEATURES_VERSION, self.data.info.fingerprint, split, list(rows), self.extractor.manifest()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def compare(self, features: Features, detail: str, manifest: Config) -> Metrics:
        """All distances wanted of features to the reference, named `…@detail`."""
        reference = self.reference()
        manifest = {**self.manifest(), "samples": len(features), **manifest}
        found: Metrics = {}
        # by one process: of many that do the same at once, each would have but a share of the machine
        distances = processes.from_first(lambda: compare_with(reference, features, self.extractor, self.wanted))
        for name, measured in distances.items():
            error = {} if measured.standard_error is None else {"standard_error": measured.standard_error}
            manifest_here = {**manifest, **measured.how}
            found[f"{self.prefix}/{name}@{detail}"] = {"value": measured.value, **error, "manifest": manifest_here}
        return found

    def manifest(self) -> Config:
        """How distances are taken."""
        reference = self.reference()
        return {
            **self.extractor.manifest(),
            "reference": reference.title,
            "reference_samples": reference.samples,
            "reference_seed": None if self.published else self.seed,
            "reference_hash": reference.hash,
            "data_fingerprint": self.data.info.fingerprint,
            "torch": torch.__version__,
        }


def without_images(batch: Batch) -> Batch:
    """What is told of images, without them."""
    return {key: value for key, value in batch.items() if key != "image"}


def seed_of(seed: int, row: int) -> int:
    """The seed of image `row` of a set: independent of batch sizes, different for every (seed, row)."""
    digest = hashlib.sha256(f"{seed}/{row}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def with_error(values: Tensor, manifest: Config) -> Config:
    """The mean of one value for each image, and its standard error."""
    metric: Config = {"value": float(values.mean()), "manifest": manifest}
    if len(values) > 1 and values.isfinite().all():
        metric["standard_error"] = float(values.std() / len(values) ** 0.5)
    return metric


def number_of(samples: int | str, available: int) -> int:
    """How many images are meant by a number, or by "all", of as many as there are."""
    return available if samples == "all" else min(int(samples), available)


def gather(features: Features, count: int) -> Features:
    """The features of all `count` images, from every process's own."""
    spatial = None if features.spatial is None else processes.gather_rows(features.spatial, count)
    return Features(processes.gather_rows(features.pooled, count), spatial)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def quality_of(config: Config, data: ImageData, device: torch.device) -> Quality:
    """What distances are measured with in a run whose `metrics` are those of `config`."""
    metrics = config["metrics"]
    extractor = build_extractor(config, data.info.image_size, device)
    lpips = None if metrics["lpips"] is None else LPIPS(metrics["lpips"])
    if lpips is not None:
        one = torch.zeros(1, 3, data.info.image_size, data.info.image_size, device=device)
        build.try_out("metrics.lpips", lambda: lpips(one, one))
    clip_score = None
    if metrics["clip_score"] is not None:
        if not data.info.has_captions:
            raise UserError(f"metrics.clip_score: data '{data.info.name}' has no captions to compare images with")
        clip_score = CLIPScore(metrics["clip_score"])
    published = None
    if metrics["reference"] is not None:
        published = read_npz(Path(metrics["reference"]), extractor, data.info.image_size)
        if published.features is None and "fd" not in metrics["distances"]:
            raise UserError("metrics.distances: fd is all that runs can be compared by with statistics as reference")
        if published.features is not None and len(published.features) < LEAST_SAMPLES:
            raise UserError(f"metrics.reference: measuring needs {LEAST_SAMPLES} images or more")
    return Quality.choose(
        data, extractor, Path(config["cache_dir"]), device, metrics["samples"], metrics["reference_split"],
        metrics["seed"], metrics["distances"], metrics["reference_samples"], published,
        lpips=lpips, clip_score=clip_score,
    )  # fmt: skip


def build_extractor(config: Config, image_size: int, device: torch.device) -> FeatureExtractor:
    """The extractor of a run, tried out on an image of its size."""
    extractor = build.build(config["metrics"]["features"], "metrics.features").to(device)
    one = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=device)
    build.try_out("metrics.features", lambda: extractor(one))
    return extractor
