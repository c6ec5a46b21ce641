"""What a run measures of its images: distances to real ones, reconstruction, and the names of all that."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import get_class
from torch import Tensor

from ldmlab import processes
from ldmlab.autoencoders.base import Autoencoder
from ldmlab.diffusion.guidance import Guidance
from ldmlab.diffusion.samplers import Sampler
from ldmlab.metrics.extractors import Features, to_uint8
from ldmlab.metrics.fidelity import Judge
from ldmlab.metrics.frechet import frechet_distance
from ldmlab.metrics.names import ENOUGH_FOR_FRECHET
from ldmlab.metrics.reconstruction import feature_loss, reconstruction_quality
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion
from ldmlab.tasks.console import track
from ldmlab.tasks.measure_fidelity import Judged, judge_images, judgements
from ldmlab.tasks.quality import Metrics, Quality, gather, seed_of, with_error, without_images

Config = dict[str, Any]


def measure_real(quality: Quality, suffix: str = "") -> Metrics:
    """The floor of real against real, at the same N, named `…@real` and `suffix`."""
    manifest = {"images": further_images(quality)}
    return quality.compare(quality.floor_features(), f"real{suffix}", manifest)


@torch.inference_mode()
def measure_reconstruction(autoencoder: Autoencoder, quality: Quality, model: str, suffix: str = "") -> Metrics:
    """What N images lose on their way through the autoencoder, and the distances of N further ones' reconstructions.

    `model` is the fingerprint of the weights, for the manifests.
    """
    source = quality.data.split(quality.split)
    own = [quality.rows[place] for place in processes.share(quality.samples)]
    values: dict[str, list[Tensor]] = {}
    features: list[Features] = []
    for batch in quality.batches(source, own, f"reconstructing {quality.samples:,} images"):
        images = batch["image"].to(quality.device)
        reconstructions = autoencoder.there_and_back(images)
        for name, value in reconstruction_quality(images, reconstructions, quality.lpips).items():
            values.setdefault(name, []).append(value.double().cpu())
        features.append(quality.features([reconstructions]))
    per_image = {name: processes.gather_rows(torch.cat(parts), quality.samples) for name, parts in values.items()}
    originals, made = quality.own_features(), gather(Features.cat(features), quality.samples)
    per_image[f"recon_{quality.extractor.metric_name('feature_loss')}"] = feature_loss(originals.pooled, made.pooled)
    manifest = {
        "split": quality.split,
        "samples": quality.samples,
        "seed": quality.seed,
        "data_fingerprint": quality.data.info.fingerprint,
        "latent": "posterior mean",
        "model": model,
        "torch": torch.__version__,
    }
    at = f"@{suffix.removeprefix('-')}" if suffix else ""
    metrics: Metrics = {}
    for name, value in per_image.items():
        judge: Config = {}
        if name.startswith("recon_feature_loss"):
            judge = quality.extractor.manifest()
        elif name.startswith("recon_lpips") and quality.lpips is not None:
            judge = {"weights_sha256": quality.lpips.hash}
        metrics[f"{quality.split}/{name}{at}"] = with_error(value, {**manifest, **judge})
    # what papers call rFID: between the images and their own reconstructions, with far less bias of a finite N
    metrics[f"{quality.split}/recon_{quality.extractor.metric_name('fd')}{at}"] = {
        "value": processes.from_first(lambda: frechet_distance(originals.pooled, made.pooled)),
        "manifest": {**manifest, **quality.extractor.manifest(), "reference": "the same images"},
    }
    return metrics | measure_reconstruction_distances(autoencoder, quality, model, suffix)


@torch.inference_mode()
def measure_reconstruction_distances(
    autoencoder: Autoencoder, quality: Quality, model: str, suffix: str = ""
) -> Metrics:
    """Distances of reconstructions of the further real images, named `…@reconstruction` and `suffix`.

    The distances are to the same reference images as those of generated images, and of images that are not among them,
    so they are what a perfect diffusion model would reach.
    """
    features = quality.features_of_rows(
        quality.data.split(quality.floor_split),
        quality.floor_rows,
        f"features of {len(quality.floor_rows):,} reconstructions",
        autoencoder.there_and_back,
    )
    manifest = {"images": f"reconstructions of {further_images(quality)}", "model": model}
    return quality.compare(features, f"reconstruction{suffix}", manifest)


def further_images(quality: Quality) -> str:
    """What the images of the floors are."""
    disjoint = "" if quality.published else ", disjoint from the reference"
    return f"{quality.data.info.name}/{quality.floor_split}{disjoint}"


def measure_generation(
    model: LatentDiffusion,
    network: ConditionalDenoiser,
    quality: Quality,
    sampler: Sampler,
    guidance: Guidance,
    description: Config,
    detail: str,
    sampling_batch: int,
    seed: int,
    judges: Sequence[Judge] = (),
) -> Metrics:
    """Distances of N generated images, what judges say of them, and their CLIP score where it is asked for.

    The conditions are those of N real images, so that classes are as frequent as there; every image has its own seed,
    whichever batch or process draws it. `description` of sampler and guidance goes into the manifest.
    """
    latent_size = quality.data.info.image_size // model.autoencoder.downsampling_factor
    own = processes.share(quality.samples)
    features, scores, evaluations = [], [], 0.0
    judged: Judged = {}
    starts = range(0, len(own), sampling_batch)
    for start in track(starts, len(starts), f"sampling {quality.samples:,} images ({detail})"):
        rows = own[start : start + sampling_batch]
        examples = quality.examples(rows, network.conditioner)
        conditions = without_images(examples)
        seeds = [seed_of(seed, row) for row in rows]
        samples = model.sample(conditions, seeds, latent_size, sampler, guidance, network)
        evaluations = samples.evaluations
        features.append(quality.features([samples.images]))
        judge_images(judges, samples.images, examples, features[-1].pooled, judged)
        if quality.clip_score is not None:
            scores.append(quality.clip_score(to_uint8(samples.images), conditions["caption"]).cpu())
    manifest = {**description, "nfe": evaluations, "seed": seed, "ema": True, "sampling_batch": sampling_batch}
    every = gather(Features.cat(features), quality.samples)
    features.clear()
    metrics = quality.compare(every, detail, manifest)
    metrics |= judgements(judged, quality, detail, manifest)
    if quality.clip_score is not None:
        told = {"weights_sha256": quality.clip_score.hash}
        values = processes.gather_rows(torch.cat(scores).double(), quality.samples)
        metrics[f"{quality.split}/{quality.clip_score.name}@{detail}"] = with_error(
            values, {**manifest, **told, "samples": quality.samples, "torch": torch.__version__}
        )
    return metrics


def sampling_detail(config: Config, trained_guidance: Config | None = None) -> tuple[str, Config]:
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


def options_of(config: Config) -> Config:
    """The settings of a `_target_` config."""
    return {key: value for key, value in config.items() if key != "_target_"}


def option_name(
    config: Config, leave_out: Sequence[str] = (), compared_with: Config | None = None
) -> tuple[str, list[str]]:
    """The class of a `_target_` config, and those of its settings that differ from the class' defaults, or from
    those of `compared_with` where that is of the same class: ["eta1.0"]."""
    parameters = inspect.signature(get_class(config["_target_"])).parameters
    usual: Config = {name: parameter.default for name, parameter in parameters.items()}
    if compared_with is not None and compared_with["_target_"] == config["_target_"]:
        usual |= compared_with
    options = sorted(options_of(config).items())
    differing = [
        f"{key}{value_name(value)}" for key, value in options if key not in leave_out and value != usual.get(key)
    ]
    return config["_target_"].rsplit(".", 1)[-1], differing


def value_name(value: Any) -> str:
    """A setting's value as part of a metric's name: no slashes, and of an object its class and what was set."""
    if isinstance(value, dict) and "_target_" in value:
        name, differing = option_name(value)
        return "-".join([name.lower(), *differing])
    return re.sub(r"[^\w.+-]+", "_", str(value))


def headline(metrics: Metrics, detail: str, suffix: str = "") -> str:
    """The distance that says most at this N, with its floor of real against real, which `suffix` names."""
    found = {name.partition("/")[2].partition("@")[0]: name for name in metrics if name.endswith(f"@{detail}")}
    kernel, frechet = (
        next((name for quantity, name in found.items() if quantity.split("_")[0] in kinds), None)
        for kinds in (("kid",), ("fd", "fid"))
    )
    chosen = kernel or frechet
    if frechet and metrics[frechet]["manifest"]["samples"] >= ENOUGH_FOR_FRECHET:
        chosen = frechet
    if chosen is None:
        return "no distance measured"
    metric = metrics[chosen]
    floor = None if detail.startswith("real") else floor_of(metrics, chosen, suffix)
    error = f" ± {metric['standard_error']:.4f}" if "standard_error" in metric else ""
    beside = f"real against real {floor['value']:.4f}, " if floor else ""
    return f"{chosen} {metric['value']:.4f}{error} ({beside}N = {metric['manifest']['samples']:,})"


def floor_of(metrics: Metrics, name: str, suffix: str = "") -> Config | None:
    """The same metric of real images; None where it was measured on another number of them and depends on that."""
    floor = metrics.get(f"{name.split('@')[0]}@real{suffix}")
    unbiased = name.partition("/")[2].startswith(("kid", "fdinf", "fidinf"))
    if floor is None or unbiased or floor["manifest"]["samples"] == metrics[name]["manifest"]["samples"]:
        return floor
    return None


def speed_line(metrics: Metrics, detail: str) -> str:
    """The speed at a setting, for the end of a line; nothing where it was not measured."""
    speed = metrics.get(f"speed/images_per_s@{detail}")
    return "" if speed is None else f", {speed['value']:.1f} images/s"
