"""Do images show what the model was told? Who judges that for a run, and what they say of real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldmlab import processes
from ldmlab.autoencoders.base import Autoencoder
from ldmlab.conditioners.base import Conditioners
from ldmlab.conditioners.inpainting import InPainting
from ldmlab.conditioners.super_resolution import SuperResolution
from ldmlab.data.loader import random_subset
from ldmlab.metrics.extractors import Features
from ldmlab.metrics.fidelity import InPaintingJudge, Judge, OracleJudge, Probe, SuperResolutionJudge, bicubic
from ldmlab.tasks.console import say, track
from ldmlab.tasks.quality import Metrics, Quality, gather, with_error
from ldmlab.types import Batch

Config = dict[str, Any]

READ_BY_ORACLES = ("label", "caption", "semantic", "boxes")


def judges_of(quality: Quality, conditioner: Conditioners, settings: Config) -> list[Judge]:
    """Who judges images of a model with such conditioners.

    The data's own oracle, where it has one, of everything that is told; else a probe of the class, where the model is
    told labels, or captions of labelled images, fitted to so many training images. Super-resolution and in-painting are
    held against the original. `settings` are a run's `metrics`, which may ask for nobody (`fidelity`) or for no probe
    (`probe_images` 0).
    """
    judges: list[Judge] = []
    if not settings["fidelity"]:
        return judges
    probe_images = settings["probe_images"]
    told = [entry for entry in READ_BY_ORACLES if entry in conditioner.told]
    oracle = getattr(quality.data, "oracle", None)
    if oracle is not None:
        judges += [OracleJudge(oracle(), told)] if told else []
    elif {"label", "caption"} & set(told) and quality.data.info.num_classes > 1 and probe_images:
        judges += fit_probe(quality, probe_images)
    for part in conditioner.named_parts.values():
        if isinstance(part, SuperResolution):
            judges.append(SuperResolutionJudge(part.shrink, quality.lpips))
        if isinstance(part, InPainting):
            judges.append(InPaintingJudge())
    return judges


def fit_probe(quality: Quality, images: int) -> list[Probe]:
    """A probe of the class on the features that distances are taken of; none if all the images are of one class."""
    source = quality.data.split("train")
    measured = set(quality.rows) if quality.split == "train" else set()
    order = random_subset(len(source), len(source), quality.seed)
    rows = [row for row in order if row not in measured][:images]
    features = quality.kept_features("train", rows).pooled
    labels = torch.cat([batch["label"] for batch in quality.batches(source, rows, "labels")])
    if len(labels.unique()) < 2:
        say("metrics.probe_images: a single class among them, so that classes are not probed")
        return []
    return [Probe(features, labels, quality.extractor, quality.seed)]


Judged = dict[str, tuple[Judge, list[Tensor]]]
"""Values of images by name, batch after batch, and who gave them."""


def judge_images(judges: Sequence[Judge], images: Tensor, examples: Batch, features: Tensor, judged: Judged) -> None:
    """Adds what judges say of a batch of images to `judged`."""
    for judge in judges:
        for name, values in judge(images, examples, features).items():
            judged.setdefault(name, (judge, []))[1].append(values.double().cpu())


def judgements(judged: Judged, quality: Quality, detail: str, manifest: Config) -> Metrics:
    """The means of what judges said of the N images, named `…@detail`; values that do not apply are left out."""
    metrics: Metrics = {}
    for name, (judge, parts) in judged.items():
        values = processes.gather_rows(torch.cat(parts), quality.samples)
        values = values[~values.isnan()]
        if not len(values):
            continue
        told = {
            "split": quality.split,
            "conditions_seed": quality.seed,
            "samples": len(values),
            "data_fingerprint": quality.data.info.fingerprint,
            "torch": torch.__version__,
        }
        metrics[f"{quality.split}/{name}@{detail}"] = with_error(values, {**manifest, **judge.manifest(), **told})
    return metrics


@torch.inference_mode()
def measure_ceiling(
    autoencoder: Autoencoder,
    conditioner: Conditioners,
    judges: Sequence[Judge],
    quality: Quality,
    model: str,
    suffix: str = "",
) -> Metrics:
    """What judges say of the N real images themselves, `…@real`, and of their reconstructions: no model does better."""
    judges = [judge for judge in judges if judge.of_real]
    if not judges:
        return {}
    own = processes.share(quality.samples)
    compressed = autoencoder.downsampling_factor > 1
    real: Judged = {}
    made: Judged = {}
    read = any(judge.reads_features for judge in judges)

    def features_of(images: Tensor) -> Tensor:
        return quality.features([images]).pooled if read else images.new_empty(len(images), 0)

    starts = range(0, len(own), quality.batch_size)
    for start in track(starts, len(starts), f"judging {quality.samples:,} real images"):
        examples = quality.examples(own[start : start + quality.batch_size], conditioner)
        images = examples["image"]
        judge_images(judges, images, examples, features_of(images), real)
        if compressed:
            images = autoencoder.there_and_back(images)
            judge_images(judges, images, examples, features_of(images), made)
    metrics = judgements(real, quality, f"real{suffix}", {"images": "the real images that conditions come from"})
    return metrics | judgements(
        made, quality, f"reconstruction{suffix}", {"images": "their reconstructions", "model": model}
    )


def measure_references(
    autoencoder: Autoencoder,
    conditioner: Conditioners,
    judges: Sequence[Judge],
    quality: Quality,
    model: str,
    suffix: str = "",
) -> Metrics:
    """What a model's fidelity is held against: the ceiling, and for super-resolution what interpolation reaches.

    `model` is the fingerprint of the weights, for the manifests.
    """
    metrics = measure_ceiling(autoencoder, conditioner, judges, quality, model, suffix)
    if "low_resolution" in conditioner.told:
        metrics |= measure_bicubic(conditioner, judges, quality, suffix)
    return metrics


@torch.inference_mode()
def measure_bicubic(conditioner: Conditioners, judges: Sequence[Judge], quality: Quality, suffix: str = "") -> Metrics:
    """Distances and judgements of small images enlarged by interpolation, `…@bicubic`: what super-resolution beats."""
    own = processes.share(quality.samples)
    judges = [judge for judge in judges if isinstance(judge, SuperResolutionJudge)]
    features, judged = [], Judged()
    for start in range(0, len(own), quality.batch_size):
        examples = quality.examples(own[start : start + quality.batch_size], conditioner)
        images = bicubic(examples["low_resolution"], examples["image"].shape[2:])
        features.append(quality.features([images]))
        judge_images(judges, images, examples, features[-1].pooled, judged)
    detail, manifest = f"bicubic{suffix}", {"images": "small images enlarged by bicubic interpolation"}
    every = gather(Features.cat(features), quality.samples)
    return quality.compare(every, detail, manifest) | judgements(judged, quality, detail, manifest)
