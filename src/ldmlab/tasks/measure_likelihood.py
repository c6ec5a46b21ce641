"""The variational bound of a trained model, term by term, in bits a dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldmlab import processes
from ldmlab.diffusion.likelihood import prior_term, step_term
from ldmlab.diffusion.posterior import NOT_LEARNED, VARIANCES
from ldmlab.diffusion.samplers import PerSampleNoise
from ldmlab.diffusion.schedules import add_noise
from ldmlab.errors import UserError
from ldmlab.modules.model import LatentDiffusion
from ldmlab.tasks.quality import Metrics, Quality, seed_of, to_device, with_error

Config = dict[str, Any]

PARTS = ("prior", "diffusion", "decoder")


def chain_of(model: LatentDiffusion, settings: Config) -> tuple[int, str]:
    """The number of steps of the chain that the bound is of, and the variance of its reverse steps.

    Raises:
        UserError: the model has learned no variance, or not on such a chain.
    """
    schedule, learned = model.objective.schedule, model.objective.learned_variance
    steps = settings["steps"] or schedule.chain or 1000
    if steps > schedule.most_steps:
        raise UserError(
            f"metrics.likelihood.steps: {steps} reach noise levels below the smallest of this path, where nothing was "
            f"trained; {schedule.most_steps} or fewer do not"
        )
    variance = settings["variance"]
    if variance == "auto":
        variance = "learned" if learned else "small"
    if variance not in VARIANCES:
        raise UserError(f"metrics.likelihood.variance: auto or one of {', '.join(VARIANCES)}, not {variance}")
    if variance == "learned" and not learned:
        raise UserError(f"metrics.likelihood.variance: {NOT_LEARNED}")
    return steps, variance


@torch.inference_mode()
def measure_likelihood(
    model: LatentDiffusion,
    quality: Quality,
    settings: Config,
    seed: int,
    description: Config,
    detail: str,
) -> Metrics:
    """The bound and its three parts for N images of the reference split, with standard errors over images.

    Of f1 these are bits a dimension of the 8-bit pixels, comparable with those of papers. Of other factors they are of
    a density of the normalised latents, are named so, and can be negative: comparable between models on the same
    autoencoder alone. The terms between first and last are estimated from `times` of them for each image, more
    of them near the data, where they are largest; null is all of them.
    """
    steps, variance = chain_of(model, settings)
    times = min(settings["times"] or steps - 1, steps - 1)
    bins = model.bins()
    source = quality.data.split(quality.split)
    places = processes.share(quality.samples)
    rows = [quality.rows[place] for place in places]
    # terms are largest near the data; all of them are drawn once where there are as many draws as terms
    few = times < steps - 1
    probability = 1 / torch.arange(2, steps + 1, dtype=torch.float64, device=quality.device) ** (1 if few else 0)
    probability /= probability.sum()
    terms: list[Tensor] = []
    drawn: list[Tensor] = []
    start = 0
    for batch in quality.batches(source, rows, f"bound of {quality.samples:,} images ({detail})"):
        batch = to_device(batch, quality.device)
        count = len(batch["image"])
        seeds = [seed_of(seed, place) for place in places[start : start + count]]
        randn_like = PerSampleNoise(seeds)
        start += count
        x0 = model.autoencoder.normalize(model.autoencoder.encode(batch["image"]).sample(randn_like))
        told = {**batch, **model.network.conditioner.tell(batch, seeds)}
        conditioning = model.condition(model.network, told)
        # the decoder's step, then one step of each of `times` equally likely parts of the chain
        offsets = torch.special.ndtr(randn_like(x0[:, :1, :1, :1]).flatten(1).double())  # uniform, of the image's seed
        parts = torch.arange(times, dtype=torch.float64, device=quality.device)
        chosen = 2 + torch.searchsorted(probability.cumsum(0), (parts + offsets) / times).clamp(max=steps - 2)
        values = []
        for step in (torch.ones_like(chosen[:, 0]), *chosen.unbind(1)):
            t = step / steps
            xt = add_noise(model.objective.schedule, x0, randn_like(x0), t)
            prediction = model.clip(model.denoise(model.network, xt, t.to(xt), conditioning), xt, t)
            term = step_term(x0, xt, prediction, t, model.objective.schedule, steps, variance, bins)
            values.append(term.double())
        prior = prior_term(x0, model.objective.schedule)
        terms.append(torch.stack([prior, *values], dim=1).cpu())
        drawn.append(chosen.cpu())
    every = processes.gather_rows(torch.cat(terms), quality.samples)
    steps_drawn = processes.gather_rows(torch.cat(drawn), quality.samples)
    prior, decoder = every[:, 0], every[:, 1]
    diffusion = (every[:, 2:] / probability.cpu()[steps_drawn - 2]).mean(1)
    unit = "8-bit pixels" if bins is not None else "density of normalised latents"
    manifest = {
        **description,
        "bits_per_dimension_of": unit,
        "chain": steps,
        "variance": variance,
        "terms_per_image": times + 2,
        "samples": quality.samples,
        "seed": seed,
        "images": f"{quality.data.info.name}/{quality.split}",
        "data_fingerprint": quality.data.info.fingerprint,
        "torch": torch.__version__,
    }
    name = f"{quality.split}/{'' if bins is not None else 'latent_'}bound"
    curve = curve_of(every[:, 2:], steps_drawn, steps)
    return {
        f"{name}_bits_per_dim@{detail}": with_error(prior + decoder + diffusion, {**manifest, "terms": curve}),
        f"{name}_prior_bits_per_dim@{detail}": with_error(prior, manifest),
        f"{name}_diffusion_bits_per_dim@{detail}": with_error(diffusion, manifest),
        f"{name}_decoder_bits_per_dim@{detail}": with_error(decoder, manifest),
    }


def curve_of(terms: Tensor, drawn: Tensor, steps: int, parts: int = 10) -> list[Config]:
    """The mean term in each tenth of the chain, and what the tenth adds to the bound."""
    place = ((drawn - 1) / steps * parts).floor().clamp(max=parts - 1)
    curve = []
    for part in range(parts):
        inside = terms[place == part]
        if len(inside):
            mean = inside.mean().item()
            curve.append({"from_t": part / parts, "to_t": (part + 1) / parts, "bits_per_dim_per_step": mean})
    return curve


def bound_line(metrics: Metrics) -> str:
    """The bound with its error and its parts, for the end of a run."""
    values = {name.partition("/")[2].partition("_bits")[0].removeprefix("latent_"): m for name, m in metrics.items()}
    whole = values["bound"]
    parts = ", ".join(f"{part} {values[f'bound_{part}']['value']:.4f}" for part in PARTS)
    error, unit = whole["standard_error"], whole["manifest"]["bits_per_dimension_of"]
    return f"bound {whole['value']:.4f} ± {error:.4f} bits/dim ({unit}; {parts})"
