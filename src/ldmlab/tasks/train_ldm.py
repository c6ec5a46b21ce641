"""Stage two: the diffusion model, and stage one before it where that is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ldmlab import processes
from ldmlab.autoencoders.base import Autoencoder
from ldmlab.callbacks.budget import Budget, Cost, Limits
from ldmlab.callbacks.pictures import log_picture, save_grid
from ldmlab.conditioners.base import Conditioners
from ldmlab.data.latents import WithImages, cache_latents, latents_key
from ldmlab.data.loader import Flipped, in_order, training_images
from ldmlab.errors import UserError
from ldmlab.metrics.speed import count_flops, count_parameters
from ldmlab.modules.image_data import ImageDataModule
from ldmlab.modules.latent_diffusion import LatentDiffusionModule
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion
from ldmlab.tasks import build, measure
from ldmlab.tasks.console import say, track
from ldmlab.tasks.grid import grid_conditions
from ldmlab.tasks.measure_fidelity import judges_of, measure_references
from ldmlab.tasks.quality import Quality, quality_of, to_device
from ldmlab.tasks.recipes import measure_diffusion, recipe_key, recipe_of
from ldmlab.tasks.run import VOLATILE, Run, group_of, key_of, read_run, run_name, stand_on_trained
from ldmlab.tasks.sharing import only_ours, open_data, share_of, state_of
from ldmlab.tasks.train_vae import STAGE_TWO, measure_statistics, train_vae
from ldmlab.tasks.training import (
    PREVIEWED,
    device_of,
    finish,
    fit,
    log_preview,
    logging_to,
    looks_on_the_way,
    set_up,
    try_trainer,
)
from ldmlab.types import Batch, ImageData, ImageSource

Config = dict[str, Any]

READ_AT_ONCE = 500


def train_ldm(config: Config, overrides: list[str]) -> Run:
    """Stage two from a resolved and checked configuration, and stage one before it where that is missing."""
    naming = overrides
    if config["downsampling"]["factor"] == 1:
        # whatever a sweep over factors says of the autoencoders of the others
        config["autoencoder"] = build.IDENTITY
        naming = [override for override in overrides if group_of(override) != "autoencoder"]
    stand_on_trained(config)
    if config["name"] == "auto":
        config["name"] = run_name("ldm", config["downsampling"]["name"], naming, config.get("swept", ()))
    run = Run(Path(config["runs_dir"]) / config["study"] / config["name"], config)
    device = device_of(config)
    with only_ours(run):
        state = state_of(run)
        if state == "complete":
            say(f"{run}: done already")
            return run
        # everything that can be wrong is built and tried before stage one, and before the run's folder is made
        quality = try_everything(config, device)
        vae_run = stage_one(config, overrides)
        processes.from_first(lambda: run.prepare(state, "train-ldm", overrides, quality.data.info.fingerprint))
        _train_ldm(run, config, quality, vae_run)
    return run


def try_everything(config: Config, device: torch.device) -> Quality:
    """What the run is measured with, and its data, once all else that it needs was built and one loss computed.

    Raises:
        UserError: something cannot be built, or does not fit together.
    """
    share_of(config["batch_size"], "batch_size")
    data = open_data(config)
    build.check_conditioner(config, data.info)
    try_trainer(config)
    if config["autoencoder_from"] is None:
        autoencoder = build.build_autoencoder(config)
    else:
        autoencoder, _ = build.load_autoencoder(Path(config["autoencoder_from"]))
    quality = quality_of(config, data, device)
    quality.refuse(autoencoder.trained_against)
    module = build_module(config, data, autoencoder)
    build.build_sampler(config, module.model.objective)
    build.build_guidance(config, module.model, config["autoencoder_from"] is not None)
    batch = data.split("val").__getitems__([0, 0])
    losses = build.try_out("denoiser", lambda: module.criterion.eval()(module.model, batch))
    if not losses.plain.isfinite().all():
        raise UserError("scheduler: the loss of an untrained network is not finite; choose other times or weights")
    build.try_out("optimizer", module.configure_optimizers)
    return quality


def build_module(config: Config, data: ImageData, autoencoder: Autoencoder) -> LatentDiffusionModule:
    """The untrained diffusion model, to train."""
    model = build.build_model(config, data.info, autoencoder)
    optimizer = build.build(config["optimizer"], "optimizer")
    drop = (config["drop_probability"], config["drop_each_probability"])
    return LatentDiffusionModule(model, optimizer, config["ema_gamma"], *drop)


def stage_one(config: Config, overrides: list[str]) -> Run | None:
    """The run of the autoencoder that stage two stands on, trained now if need be; None for the identity."""
    if config["downsampling"]["factor"] == 1:
        return None
    if config["autoencoder_from"] is not None:
        return read_run(config["autoencoder_from"], "autoencoder", "autoencoder_from")
    limits = Limits(**config["budget"]).share(config["autoencoder_share"])
    shared = (
        "study",
        "runs_dir",
        "cache_dir",
        "data",
        "autoencoder",
        "downsampling",
        "metrics",
        "trainer",
        "logger",
    )
    stage_one_config: Config = {
        **{key: config[key] for key in shared},
        "choices": {group: choice for group, choice in config["choices"].items() if group_of(group) in shared},
        "swept": config.get("swept", ()),
        "name": "auto",
        "overwrite": config["overwrite"],
        "seed": config["autoencoder"]["seed"],
        "budget": asdict(limits),
    }
    own = [override for override in overrides if concerns_stage_one(override, config.get("swept", ()))]
    return train_vae(stage_one_config, own, made_by=("train-ldm", overrides))


def concerns_stage_one(override: str, swept: Sequence[str]) -> bool:
    """Whether an override makes another autoencoder, and so belongs in its name."""
    key = key_of(override)
    group = group_of(override)
    if group in ("autoencoder", "downsampling"):
        return True
    if group == "trainer":
        return key in swept and key not in (*VOLATILE, *STAGE_TWO)
    return key in swept and group in ("data", "budget", "autoencoder_share")


def _train_ldm(run: Run, config: Config, quality: Quality, vae_run: Run | None) -> None:
    set_up(config, config["seed"])
    data, device = quality.data, quality.device
    spent = Cost()
    fingerprint = ""
    if vae_run is None:
        autoencoder = build.build_autoencoder(config)
        measure_statistics(autoencoder, data, device)
    else:
        autoencoder, fingerprint = build.load_autoencoder(vae_run.path)
        spent = spent + Cost(**(vae_run.summary or {})["cost"])

    torch.manual_seed(config["seed"])
    module = build_module(config, data, autoencoder)
    model, network = module.model, module.model.network

    source, caching = training_source(config, data, autoencoder, fingerprint, network.conditioner.needs, device)
    spent = spent + caching
    # of captions, which belongs to stage two
    reads = processes.first_then_others(lambda: reading(source, network.conditioner))
    read = processes.from_first(lambda: reads)

    limits = Limits(**config["budget"])
    if config["autoencoder_from"] is None:
        # of what both stages take; steps and images of one are none of the other's
        limits = limits.less(replace(spent, steps=0, images=0))
    if any(limit is not None and limit <= 0 for limit in asdict(limits).values()) or limits.used(read) >= 1:
        raise UserError(
            "budget: nothing is left for diffusion once the autoencoder is trained, latents are cached and captions "
            "read; raise the budget or lower autoencoder_share"
        )
    budget = Budget(limits, config["trainer"]["warmup_steps"], config["trainer"]["decay"], before=read)
    sampler = build.build_sampler(config, model.objective)
    guidance = build.build_guidance(config, model, device=device)  # Lightning moves the model there later
    metrics_config = config["metrics"]
    latent_size = data.info.image_size // autoencoder.downsampling_factor
    detail, description = measure.sampling_detail(config)
    conditions, seeds, columns = grid_conditions(data, network.conditioner, metrics_config["seed"])
    conditions = to_device(conditions, device)

    def draw_grid(path: Path, network: ConditionalDenoiser) -> None:
        images = model.sample(conditions, seeds, latent_size, sampler, guidance, network).images
        if processes.rank() == 0:
            save_grid(images, path, columns)

    def milestone(trainer: L.Trainer, _: L.LightningModule) -> None:
        path = run.samples / f"samples-{trainer.global_step:07d}.png"
        draw_grid(path, module.averaged())
        log_picture(trainer, "samples", path)

    few = quality.fewer(metrics_config["preview_samples"], PREVIEWED)

    def preview(trainer: L.Trainer, _: L.LightningModule) -> None:
        metrics = measure.measure_generation(
            model, module.averaged(), few, sampler, guidance, description, "preview",
            metrics_config["sampling_batch"], metrics_config["seed"],
        )  # fmt: skip
        log_preview(trainer, metrics, budget)

    with logging_to(run, config, budget) as loggers:
        batch_size = share_of(config["batch_size"], "batch_size")
        feed = ImageDataModule(source, batch_size, config["seed"], config["trainer"]["num_workers"])
        fit(run, config, module, feed, budget, looks_on_the_way(config, budget, milestone, preview), loggers)

        module.to(device).eval()
        average = module.averaged()
        export = LatentDiffusion(autoencoder, average, model.objective)
        described = {
            **build.description_of(autoencoder),
            **{key: config[key] for key in ("denoiser", "scheduler", "sampler", "guidance")},
            "conditioner": build.conditioners_for_others(config["conditioner"]),
            "drop_each_probability": config["drop_each_probability"],
            "data": build.info_to_dict(data.info),
        }
        model_fingerprint = processes.from_first(lambda: build.save_model(export, run.checkpoints, described))
        with budget.aside():
            draw_grid(run.samples / "final.png", average)
            metrics = measure.measure_real(quality)
            if vae_run is not None:
                metrics |= measure.measure_reconstruction(autoencoder, quality, model_fingerprint)
            description |= {"model": model_fingerprint}
            judges = judges_of(quality, average.conditioner, metrics_config)
            metrics |= measure_references(autoencoder, average.conditioner, judges, quality, model_fingerprint)
            metrics |= measure_diffusion(model, average, quality, config, description, detail, judges)
        finish(
            run,
            "diffusion",
            data.info,
            metrics,
            budget,
            loggers,
            samples="samples/final.png",
            measured={recipe_key(quality, detail): recipe_of(config)},
            parameters={
                "denoiser": count_parameters(network),
                "autoencoder": count_parameters(autoencoder),
            },
            cost_autoencoder=asdict(spent) if vae_run is not None else None,
            autoencoder_from=None if vae_run is None else str(vae_run),
        )
    say(f"{run}: {measure.headline(metrics, detail)}{measure.speed_line(metrics, detail)}")


def reading(source: ImageSource, conditioner: Conditioners) -> Cost:
    """Has conditioners read beforehand what is read once; what that costs, whichever run did it."""

    def batches() -> Iterable[Batch]:
        count = -(-len(source) // READ_AT_ONCE)
        return track(in_order(source, range(len(source)), READ_AT_ONCE), count, f"reading {len(source):,} captions")

    seconds, cpu_seconds = conditioner.prepare(batches)
    return Cost(seconds=seconds, cpu_seconds=cpu_seconds)


def training_source(
    config: Config,
    data: ImageData,
    autoencoder: Autoencoder,
    fingerprint: str,
    keys: tuple[str, ...],
    device: torch.device,
) -> tuple[ImageSource, Cost]:
    """What diffusion is trained on: cached latents, or for the identity the images themselves; and what they cost.

    The cost is that of encoding, whichever run did it, so that all runs on the same latents are charged alike.
    """
    images = training_images(data)
    if autoencoder.downsampling_factor == 1:
        return images, Cost()
    kept = tuple(key for key in keys if key != "image")
    key = latents_key(fingerprint, data.info.fingerprint, "train", isinstance(images, Flipped), kept)

    @torch.inference_mode()
    def encode(batch: Tensor) -> tuple[Tensor, Tensor]:
        posterior = autoencoder.to(device).encode(batch.to(device))
        return posterior.mean, posterior.std

    latents = cache_latents(
        images,
        encode,
        Path(config["cache_dir"]) / "latents" / key,
        kept,
        progress=lambda batches, count: track(batches, count, f"encoding {len(images):,} images"),
    )
    one = torch.zeros(1, 3, data.info.image_size, data.info.image_size)
    flops = count_flops(lambda: encode(one)) * len(images)
    source = WithImages(latents, images) if "image" in keys else latents
    return source, Cost(flops=flops, seconds=latents.seconds, cpu_seconds=latents.cpu_seconds)
