"""What a run measures of itself: distances of its images to real ones, reconstruction, and speed.

Every distance in a run is taken to the same N reference images, by the same features, so that generated images,
reconstructions and further real images can be put side by side.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from hydra.utils import get_class
from torch import Tensor

from ldmlab.autoencoders.base import Autoencoder
from ldmlab.data.cache_folder import new_folder
from ldmlab.data.loader import in_order, random_subset
from ldmlab.diffusion.guidance import Guidance
from ldmlab.diffusion.samplers import Sampler
from ldmlab.errors import UserError
from ldmlab.metrics.distances import frechet_distance, kernel_distance
from ldmlab.metrics.extractors import FeatureExtractor, to_uint8
from ldmlab.metrics.reconstruction import Reconstruction
from ldmlab.metrics.speed import device_name, peak_memory_mb, reset_peak_memory, synchronize
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion
from ldmlab.tasks import build
from ldmlab.tasks.checks import LEAST_SAMPLES
from ldmlab.types import Batch, ImageData

Track = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""(iterable, length, title) -> the same iterable, its progress shown."""

Metrics = dict[str, dict[str, Any]]
"""{name: {"value", "standard_error" (optional), "manifest"}}, as summary.json holds them."""

EXTRACTION_BATCH = 64


@dataclass(frozen=True)
class Quality:
    """Distances to N fixed images of the reference split.

    `floor_rows` are N further real images, disjoint from the reference: their distance, and that of their
    reconstructions, are the floors that generated images cannot go below.
    """

    data: ImageData
    extractor: FeatureExtractor
    cache_dir: Path
    device: torch.device
    seed: int
    split: str
    reference_rows: tuple[int, ...]
    floor_split: str
    floor_rows: tuple[int, ...]

    @classmethod
    def choose(
        cls,
        data: ImageData,
        extractor: FeatureExtractor,
        cache_dir: Path,
        device: torch.device,
        samples: int,
        split: str,
        seed: int,
    ) -> Quality:
        """Draws the reference images at random from `split`; the floor's from what is left of it, or else from train.

        N is `samples`, or all images of the split if it has fewer.
        """
        length = len(data.split(split))
        n = min(samples, length)
        if n < LEAST_SAMPLES:
            raise UserError(
                f"metrics: the {split} split has {length} images, measuring needs {LEAST_SAMPLES} or more: "
                "hold out more of the data with data.val_fraction, or add images"
            )
        order = random_subset(length, length, seed)
        if length >= 2 * n:
            floor_split, floor_rows = split, order[n : 2 * n]
        else:
            floor_split = "train" if split == "val" else "val"
            floor_rows = random_subset(len(data.split(floor_split)), n, seed)
        return cls(data, extractor, cache_dir, device, seed, split, tuple(order[:n]), floor_split, tuple(floor_rows))

    def fewer(self, samples: int) -> Quality:
        """The same with the first `samples` images only, for a cheap look."""
        return replace(self, reference_rows=self.reference_rows[:samples], floor_rows=self.floor_rows[:samples])

    @property
    def samples(self) -> int:
        """N."""
        return len(self.reference_rows)

    def conditions(self, rows: Sequence[int]) -> Batch:
        """What the data says of reference images `rows` (positions in the reference), without the images."""
        batch = self.data.split(self.split).__getitems__([self.reference_rows[row] for row in rows])
        return to_device({key: value for key, value in batch.items() if key != "image"}, self.device)

    def floor_images(self, batch_size: int) -> Iterable[Tensor]:
        """The N further real images, in batches (B, 3, H, W)."""
        for batch in in_order(self.data.split(self.floor_split), self.floor_rows, batch_size):
            yield batch["image"].to(self.device)

    def features(self, images: Iterable[Tensor]) -> Tensor:
        """Features (N, D) of batches of images in [-1, 1]."""
        return torch.cat([self.extractor(to_uint8(batch)).cpu() for batch in images])

    def reference_features(self, track: Track) -> Tensor:
        """Features of the reference images, made once and kept on disk."""
        return self._real_features(self.split, self.reference_rows, track)

    def floor_features(self, track: Track) -> Tensor:
        """Features of the further real images, made once and kept on disk."""
        return self._real_features(self.floor_split, self.floor_rows, track)

    def _real_features(self, split: str, rows: Sequence[int], track: Track) -> Tensor:
        folder = self.cache_dir / "features" / self._key(split, rows)
        if not folder.exists():
            batches = list(range(0, len(rows), EXTRACTION_BATCH))
            source = self.data.split(split)
            parts = [
                self.features(
                    [source.__getitems__(list(rows[start : start + EXTRACTION_BATCH]))["image"].to(self.device)]
                )
                for start in track(batches, len(batches), f"features of {len(rows)} real images ({split})")
            ]
            with new_folder(folder, nbytes=4 * sum(part.numel() for part in parts)) as building:
                torch.save(torch.cat(parts), building / "features.pt")
        return torch.load(folder / "features.pt", weights_only=True)

    def _key(self, split: str, rows: Sequence[int]) -> str:
        parts = [self.data.info.fingerprint, split, list(rows), self.extractor.manifest()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def distances(self, features: Tensor, detail: str, manifest: dict[str, Any], track: Track) -> Metrics:
        """Kernel and Fréchet distance of features (N, D) to the reference, named `…@detail`."""
        reference = self.reference_features(track)
        kernel = kernel_distance(reference, features)
        manifest = {**self.manifest(), "samples": len(features), **manifest}
        return {
            f"{self.split}/{self.extractor.kernel_name}@{detail}": {
                "value": kernel.value,
                "standard_error": kernel.standard_error,
                "manifest": manifest,
            },
            f"{self.split}/{self.extractor.frechet_name}@{detail}": {
                "value": frechet_distance(reference, features),
                "manifest": manifest,
            },
        }

    def manifest(self) -> dict[str, Any]:
        """How distances are taken."""
        return {
            **self.extractor.manifest(),
            "reference": f"{self.data.info.name}/{self.split}",
            "reference_samples": self.samples,
            "reference_seed": self.seed,
            "reference_hash": self._key(self.split, self.reference_rows),
        }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def measure_real(quality: Quality, track: Track, suffix: str = "") -> Metrics:
    """The floor of real against real, at the same N, named `…@real` and `suffix`."""
    manifest = {"images": f"{quality.data.info.name}/{quality.floor_split}, disjoint from the reference"}
    return quality.distances(quality.floor_features(track), f"real{suffix}", manifest, track)


@torch.inference_mode()
def measure_reconstruction(autoencoder: Autoencoder, quality: Quality, track: Track) -> Metrics:
    """PSNR and SSIM of the reference images' reconstructions, and the distances of the further real images' ones."""
    fidelity = Reconstruction()
    source = quality.data.split(quality.split)
    for batch in in_order(source, quality.reference_rows, EXTRACTION_BATCH):
        images = batch["image"].to(quality.device)
        fidelity.update(images, autoencoder.decode(autoencoder.encode(images).mean).clamp(-1, 1))
    manifest = {"split": quality.split, "samples": quality.samples, "latent": "posterior mean"}
    metrics: Metrics = {
        f"{quality.split}/{name}": {"value": value, "manifest": manifest} for name, value in fidelity.compute().items()
    }
    return metrics | measure_reconstruction_distances(autoencoder, quality, track)


@torch.inference_mode()
def measure_reconstruction_distances(
    autoencoder: Autoencoder, quality: Quality, track: Track, suffix: str = ""
) -> Metrics:
    """Distances of reconstructions of the further real images, named `…@reconstruction` and `suffix`.

    The distances are to the same reference images as those of generated images, and of images that are not among them,
    so they are what a perfect diffusion model would reach.
    """
    batches = quality.floor_images(EXTRACTION_BATCH)
    count = -(-len(quality.floor_rows) // EXTRACTION_BATCH)
    features = quality.features(
        autoencoder.decode(autoencoder.encode(images).mean).clamp(-1, 1)
        for images in track(batches, count, f"features of {len(quality.floor_rows)} reconstructions")
    )
    source_name = f"reconstructions of {quality.data.info.name}/{quality.floor_split}, disjoint from the reference"
    return quality.distances(features, f"reconstruction{suffix}", {"images": source_name}, track)


def measure_generation(
    model: LatentDiffusion,
    network: ConditionalDenoiser,
    quality: Quality,
    sampler: Sampler,
    guidance: Guidance,
    description: dict[str, Any],
    detail: str,
    track: Track,
    sampling_batch: int,
    latency_repeats: int,
    seed: int,
) -> Metrics:
    """Distances of N generated images, and the speed at which these very images were made.

    The conditions are those of the reference images, so that classes are as frequent as there. The clock covers
    everything from noise to decoded image; the first batch warms up and is not counted, but drawn once more where there
    is no second one. `description` of sampler and guidance goes into the manifest.
    """
    batch_size = min(sampling_batch, quality.samples)
    latent_size = quality.data.info.image_size // model.autoencoder.downsampling_factor
    device = quality.device

    def draw(rows: Sequence[int]) -> tuple[Tensor, float, float]:
        conditions = quality.conditions(rows)
        synchronize(device)
        start = time.perf_counter()
        seeds = [seed_of(seed, row) for row in rows]
        samples = model.sample(conditions, seeds, latent_size, sampler, guidance, network)
        synchronize(device)
        return samples.images, time.perf_counter() - start, samples.evaluations

    reset_peak_memory(device)
    features, batch_seconds, evaluations = [], [], 0.0
    starts = list(range(0, quality.samples, batch_size))
    for start in track(starts, len(starts), f"sampling {quality.samples} images ({detail})"):
        rows = range(start, min(start + batch_size, quality.samples))
        images, seconds, evaluations = draw(rows)
        if start > 0 and len(rows) == batch_size:
            batch_seconds.append(seconds)
        features.append(quality.features([images]))
    peak = peak_memory_mb(device)

    manifest = {**description, "nfe": evaluations, "seed": seed, "ema": True}
    metrics = quality.distances(torch.cat(features), detail, manifest, track)
    if not batch_seconds:
        batch_seconds = [draw(range(batch_size))[1]]
    latencies = [draw([row % quality.samples])[1] for row in range(latency_repeats + 1)][1:]
    speed = {
        **manifest,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "covers": "noise to decoded image",
    }
    metrics[f"speed/images_per_s@{detail}"] = timed(
        batch_seconds, lambda seconds: batch_size / seconds, {**speed, "batch_size": batch_size}
    )
    if latencies:
        metrics[f"speed/latency_s@{detail}"] = timed(latencies, lambda seconds: seconds, {**speed, "batch_size": 1})
    if model.autoencoder.downsampling_factor > 1:
        metrics[f"speed/decode_images_per_s@{detail}"] = measure_decoding(model, latent_size, batch_size, device, speed)
    metrics[f"speed/nfe@{detail}"] = {"value": evaluations, "manifest": speed}
    # a CPU's peak cannot be started anew
    covers = "sampling" if device.type == "cuda" else "the whole process, training included"
    metrics[f"speed/peak_memory_mb@{detail}"] = {"value": peak, "manifest": {**speed, "covers": covers}}
    return metrics


def seed_of(seed: int, row: int) -> int:
    """The seed of image `row` of a set: independent of batch sizes, different for every (seed, row)."""
    digest = hashlib.sha256(f"{seed}/{row}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


@torch.inference_mode()
def measure_decoding(
    model: LatentDiffusion, latent_size: int, batch_size: int, device: torch.device, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Images decoded a second, apart from diffusion."""
    latents = torch.randn(batch_size, model.autoencoder.latent_channels, latent_size, latent_size, device=device)
    seconds = []
    for _ in range(12):
        synchronize(device)
        start = time.perf_counter()
        model.autoencoder.decode(model.autoencoder.denormalize(latents))
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    covers = {**manifest, "covers": "latent to image", "batch_size": batch_size}
    return timed(seconds[2:], lambda value: batch_size / value, covers)


def timed(seconds: list[float], to_value: Callable[[float], float], manifest: dict[str, Any]) -> dict[str, Any]:
    """The median of repeated timings as a metric, its quartiles and their number in the manifest."""
    values = sorted(to_value(value) for value in seconds)
    quartiles = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {
        "value": quartiles[1],
        "manifest": {**manifest, "quartiles": [quartiles[0], quartiles[2]], "repeats": len(values)},
    }


def quality_of(config: dict[str, Any], data: ImageData, device: torch.device) -> Quality:
    """What distances are measured with in this run."""
    metrics = config["metrics"]
    extractor = build.build(metrics["features"], "metrics.features").to(device)
    one = torch.zeros(1, 3, data.info.image_size, data.info.image_size, dtype=torch.uint8, device=device)
    build.try_out("metrics.features", lambda: extractor(one))
    return Quality.choose(
        data,
        extractor,
        Path(config["cache_dir"]),
        device,
        metrics["samples"],
        metrics["reference_split"],
        metrics["seed"],
    )


def sampling_detail(
    config: dict[str, Any], trained_guidance: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """How metrics of this sampler are named, "ddim50", and what their manifest says of it.

    The name says what differs from the sampler's defaults, "ddim50-eta1.0", and from the guidance that the run was
    trained for, where that is given: "euler20-scale1.0", "euler20-noguidance".
    """
    sampler, differing = option_name(config["sampler"], leave_out=("steps",))
    parts = [f"{sampler.lower()}{config['sampler']['steps']}", *differing]
    trained = trained_guidance or config["guidance"]
    guidance, changed = option_name(config["guidance"], compared_with=trained)
    if config["guidance"] != trained:
        parts += changed or [guidance.lower()]
    told = {"name": guidance, **options_of(config["guidance"])}
    return "-".join(parts), {"sampler": sampler, **options_of(config["sampler"]), "guidance": told}


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a `_target_` config."""
    return {key: value for key, value in config.items() if key != "_target_"}


def option_name(
    config: dict[str, Any], leave_out: Sequence[str] = (), compared_with: dict[str, Any] | None = None
) -> tuple[str, list[str]]:
    """The class of a `_target_` config, and those of its settings that differ from the class' defaults, or from
    those of `compared_with` where that is of the same class: ["eta1.0"]."""
    usual: dict[str, Any] = {}
    if compared_with is not None and compared_with["_target_"] == config["_target_"]:
        usual = compared_with
    else:
        parameters = inspect.signature(get_class(config["_target_"])).parameters
        usual = {name: parameter.default for name, parameter in parameters.items()}
    options = sorted(options_of(config).items())
    differing = [f"{key}{value}" for key, value in options if key not in leave_out and value != usual.get(key)]
    return config["_target_"].rsplit(".", 1)[-1], differing


def headline(metrics: Metrics, detail: str, suffix: str = "") -> str:
    """The kernel distance, with its floor of real against real, which `measure_real` named with `suffix`."""
    name = next(name for name in metrics if "kid" in name and name.endswith(f"@{detail}"))
    metric, floor = metrics[name], metrics[name.split("@")[0] + f"@real{suffix}"]
    samples = metric["manifest"]["samples"]
    return (
        f"{name} {metric['value']:.4f} ± {metric['standard_error']:.4f} "
        f"(real against real {floor['value']:.4f}, N = {samples:,})"
    )
