"""How fast a trained model makes images, part by part and from end to end, and what it takes."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch

from ldmlab.diffusion.guidance import Guidance
from ldmlab.diffusion.samplers import Sampler
from ldmlab.errors import UserError
from ldmlab.metrics.speed import (
    best_batch_size,
    count_flops,
    device_name,
    peak_memory_mb,
    reset_peak_memory,
    time_repeats,
)
from ldmlab.modules.model import ConditionalDenoiser, GuidedDenoiser, LatentDiffusion
from ldmlab.tasks.quality import Metrics, Quality, seed_of, without_images
from ldmlab.types import Batch

SEARCH_REPEATS = 3


def measure_speed(
    model: LatentDiffusion,
    network: ConditionalDenoiser,
    quality: Quality,
    sampler: Sampler,
    guidance: Guidance,
    description: dict[str, Any],
    detail: str,
    repeats: int,
    largest_batch: int,
    seed: int,
) -> Metrics:
    """Images a second at the batch size that gives most of them, the latency of one image, and what each part takes.

    The clock covers everything from noise to decoded image; calls that warm up are left out, and the device has done
    its work at each reading. The batch size is searched with single evaluations of the denoiser, which is nearly all
    of the work. Names end in `@detail`, as those of the quality at the very same setting do.
    """
    device = quality.device
    latent_size = quality.data.info.image_size // model.autoencoder.downsampling_factor
    shape = (model.autoencoder.latent_channels, latent_size, latent_size)

    def conditions_of(batch_size: int) -> Batch:
        rows = [row % quality.samples for row in range(batch_size)]
        return without_images(quality.examples(rows, network.conditioner))

    def sampling(batch_size: int) -> Callable[[], float]:
        """A call that samples a batch, and nothing else: what it is told is made beforehand."""
        conditions = conditions_of(batch_size)
        seeds = [seed_of(seed, row) for row in range(batch_size)]
        return lambda: model.sample(conditions, seeds, latent_size, sampler, guidance, network).evaluations

    def parts(batch_size: int) -> dict[str, Callable[[], Any]]:
        """One pass of each part of the model over a batch."""
        conditions = conditions_of(batch_size)
        denoise = GuidedDenoiser(model, network, conditions, batch_size, guidance)
        latents = torch.randn(batch_size, *shape, device=device)
        halfway = torch.full((batch_size,), 0.5, device=device)
        found: dict[str, Callable[[], Any]] = {"denoiser": lambda: denoise(latents, halfway)}
        if model.autoencoder.downsampling_factor > 1:
            found["decoder"] = lambda: model.autoencoder.decode(model.autoencoder.denormalize(latents))
        if network.conditioner.told:
            found["conditioner"] = lambda: model.condition(network, conditions)
        return found

    with torch.inference_mode(), torch.random.fork_rng():
        flops = count_flops(sampling(1))
        evaluations = sampling(1)()
        counting = GuidedDenoiser(model, network, conditions_of(1), 1, guidance)
        counting(torch.zeros(1, *shape, device=device), torch.full((1,), 0.5, device=device))
        passes = evaluations / counting.rows  # of the denoiser for an image, guided

        def throughput(batch_size: int) -> float:
            seconds = {
                name: median(time_repeats(part, SEARCH_REPEATS, device, warmups=1))
                for name, part in parts(batch_size).items()
            }
            return batch_size / (passes * seconds.pop("denoiser") + sum(seconds.values()))

        batch_size, tried = best_batch_size(throughput, largest_batch)
        covers = reset_peak_memory(device)
        whole, batch_size = time_whole(sampling, batch_size, repeats, device)
        peak = peak_memory_mb(device)
        latencies = time_repeats(sampling(1), repeats, device, warmups=1)
        apart = {name: time_repeats(part, repeats, device) for name, part in parts(batch_size).items()}
        alone = {name: time_repeats(part, repeats, device) for name, part in parts(1).items()}

    manifest = {
        **description,
        "nfe": evaluations,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "data_fingerprint": quality.data.info.fingerprint,
        "torch": torch.__version__,
    }
    at_best = {**manifest, "batch_size": batch_size, "batch_sizes_tried": tried}
    single = {**manifest, "batch_size": 1}
    end_to_end = {"covers": "noise to decoded image"}
    metrics: Metrics = {
        "images_per_s": timed(whole, lambda seconds: batch_size / seconds, {**at_best, **end_to_end}),
        "latency_s": timed(latencies, lambda seconds: seconds, {**single, **end_to_end}),
        "nfe": {"value": evaluations, "manifest": manifest},
        "flops_per_image": {"value": flops, "manifest": {**single, **end_to_end}},
        "peak_memory_mb": {"value": peak, "manifest": {**at_best, "covers": f"sampling; {covers}"}},
    }
    for name in apart:
        covers_part = {"covers": f"one pass of the {name}" + (", guided" if name == "denoiser" else "")}
        metrics[f"{name}_images_per_s"] = timed(apart[name], lambda s: batch_size / s, {**at_best, **covers_part})
        metrics[f"{name}_latency_s"] = timed(alone[name], lambda seconds: seconds, {**single, **covers_part})
    return {f"speed/{name}@{detail}": metric for name, metric in metrics.items()}


def time_whole(
    sampling: Callable[[int], Callable[[], Any]], batch_size: int, repeats: int, device: torch.device
) -> tuple[list[float], int]:
    """Seconds of whole samplings, of half as large batches where those do not fit into memory; and the batch size."""
    while True:
        try:
            return time_repeats(sampling(batch_size), repeats, device, warmups=1), batch_size
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise UserError("metrics.speed_batch: memory is too small for a single image") from None
            batch_size //= 2


def timed(seconds: list[float], to_value: Callable[[float], float], manifest: dict[str, Any]) -> dict[str, Any]:
    """The median of repeated timings as a metric, its quartiles and their number in the manifest."""
    values = sorted(to_value(value) for value in seconds)
    quartiles = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {
        "value": quartiles[1],
        "manifest": {**manifest, "quartiles": [quartiles[0], quartiles[2]], "repeats": len(values)},
    }
