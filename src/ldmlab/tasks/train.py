"""Training: the autoencoder, and the diffusion model in its latent space."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from ldmlab.autoencoders.base import Autoencoder
from ldmlab.callbacks.budget import Budget, Cost, Limits, Stopwatch
from ldmlab.callbacks.jsonl import JsonLines
from ldmlab.callbacks.pictures import AtMilestones, log_picture, save_grid
from ldmlab.callbacks.progress import TrainingProgress
from ldmlab.callbacks.resume import Checkpoints, RandomState
from ldmlab.data.latents import cache_latents, latents_key
from ldmlab.data.loader import Flipped, in_order, random_subset
from ldmlab.errors import Interrupted, UserError
from ldmlab.metrics.speed import count_parameters
from ldmlab.modules.autoencoder import AutoencoderModule, latent_report
from ldmlab.modules.image_data import ImageDataModule
from ldmlab.modules.latent_diffusion import LatentDiffusionModule
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion
from ldmlab.tasks import build, checks, measure
from ldmlab.tasks.console import console, say, track
from ldmlab.tasks.run import Run, provenance, read_run, run_name
from ldmlab.types import DataInfo, ImageData, ImageSource

Config = dict[str, Any]

STATISTICS_IMAGES = 5_000
GRID_IMAGES = 40


def train_vae(config: Config, overrides: list[str]) -> Run:
    """Stage one from a resolved configuration; a complete run is returned as it is, an interrupted one goes on."""
    checks.check_vae(config)
    name = config["name"]
    if name == "auto":
        name = config["name"] = run_name("vae", config["downsampling"]["name"], overrides)
    run = Run(Path(config["runs_dir"]) / config["study"] / name, config)
    with run.lock(say):
        _train_vae(run, config, overrides)
    return run


def _train_vae(run: Run, config: Config, overrides: list[str]) -> None:
    data = build.build_data(config)
    train_images = data.split("train")
    settings = config["autoencoder"]
    run.prepare("train-vae", overrides, config["overwrite"])
    if run.summary is not None:
        say(f"{run}: done already")
        return
    set_up(config, settings["seed"])

    autoencoder = build.build_autoencoder(config)
    module = AutoencoderModule(
        autoencoder, build.build(settings["optimizer"], "autoencoder.optimizer"), settings["kl_weight"]
    )
    source = Flipped(train_images) if getattr(data, "flip", False) else train_images
    budget = Budget(Limits(**config["budget"]), settings["warmup_steps"], settings["decay"])
    fixed = data.split("val").__getitems__(range(min(GRID_IMAGES // 2, len(data.split("val")))))["image"]

    def reconstruct(path: Path) -> None:
        with torch.inference_mode():
            images = fixed.to(module.device)
            pairs = torch.stack([images, autoencoder.decode(autoencoder.encode(images).mean).clamp(-1, 1)], 1)
        save_grid(pairs.flatten(0, 1), path, columns=10)

    def milestone(trainer: L.Trainer, _: L.LightningModule) -> None:
        path = run.samples / f"reconstructions-{trainer.global_step:07d}.png"
        reconstruct(path)
        log_picture(trainer, "reconstructions", path)

    with logging_to(run, config, budget) as loggers:
        pictures = AtMilestones("grids", budget, config["trainer"]["grids"], milestone)
        fit(
            run,
            config,
            module,
            ImageDataModule(source, settings["batch_size"], settings["seed"]),
            budget,
            [pictures],
            loggers,
        )

        module.to(device_of(config)).eval()
        statistics = Stopwatch()
        statistics.start()
        measure_statistics(autoencoder, data, device_of(config))
        statistics.stop()
        reconstruct(run.samples / "reconstructions-final.png")
        quality = quality_of(config, data)
        metrics = measure.measure_real(quality, track)
        metrics |= measure.measure_reconstruction(autoencoder, quality, track)
        val = data.split("val")
        rows = random_subset(len(val), STATISTICS_IMAGES, 0)
        report = latent_report(autoencoder, (b["image"].to(module.device) for b in in_order(val, rows, 250)))
        autoencoder.cpu()
        build.save_model(autoencoder, run.checkpoints, {"autoencoder": settings["network"]})
        finish(
            run,
            "autoencoder",
            data.info,
            metrics,
            budget.cost + Cost(seconds=statistics.seconds, cpu_seconds=statistics.cpu_seconds),
            loggers,
            samples="samples/reconstructions-final.png",
            parameters={"autoencoder": count_parameters(autoencoder)},
            latents=report,
        )
    psnr = metrics["val/recon_psnr"]["value"]
    say(f"{run}: PSNR {psnr:.2f} dB, {headline(metrics, 'reconstruction')}")


def train_ldm(config: Config, overrides: list[str]) -> Run:
    """Stage two from a resolved configuration, and stage one before it where that is missing."""
    checks.check_ldm(config)
    data = build.build_data(config)
    build.check_conditioner(config, data.info)
    for check in (build.build_objective, build.build_sampler, build.build_guidance):
        check(config)
    if config["autoencoder_from"] is not None:
        build.load_autoencoder(Path(config["autoencoder_from"]))
    name = config["name"]
    if name == "auto":
        name = config["name"] = run_name("ldm", config["downsampling"]["name"], overrides)
    run = Run(Path(config["runs_dir"]) / config["study"] / name, config)
    with run.lock(say):
        run.prepare("train-ldm", overrides, config["overwrite"])
        if run.summary is not None:
            say(f"{run}: done already")
            return run
        _train_ldm(run, config, overrides, data)
    return run


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
        "overwrite",
        "data",
        "autoencoder",
        "downsampling",
        "metrics",
        "trainer",
        "logger",
    )
    stage_one_config: Config = {
        **{key: config[key] for key in shared},
        "name": "auto",
        "seed": config["autoencoder"]["seed"],
        "budget": asdict(limits),
    }
    own = [override for override in overrides if override.split("=")[0].split(".")[0] == "autoencoder"]
    return train_vae(stage_one_config, own)


def _train_ldm(run: Run, config: Config, overrides: list[str], data: ImageData) -> None:
    vae_run = stage_one(config, overrides)
    set_up(config, config["seed"])
    device = device_of(config)
    spent = Cost()
    fingerprint = ""
    if vae_run is None:
        autoencoder = build.build_autoencoder(config)
        measure_statistics(autoencoder, data, device)
    else:
        autoencoder, fingerprint = build.load_autoencoder(vae_run.path)
        spent = spent + Cost(**(vae_run.summary or {})["cost"])

    torch.manual_seed(config["seed"])
    network = build.build_network(config, data.info, autoencoder.latent_channels)
    model = LatentDiffusion(autoencoder, network, build.build_objective(config), config["drop_probability"])
    module = LatentDiffusionModule(model, build.build(config["optimizer"], "optimizer"), config["ema_gamma"])

    caching = Stopwatch()
    caching.start()
    source = training_source(config, data, autoencoder, fingerprint, network.conditioner.needs, device)
    caching.stop()
    spent = spent + Cost(seconds=caching.seconds, cpu_seconds=caching.cpu_seconds)

    limits = Limits(**config["budget"])
    if config["autoencoder_from"] is None:
        limits = limits.less(spent)
        if any(limit is not None and limit <= 0 for limit in asdict(limits).values()):
            raise UserError(
                "budget: nothing is left for diffusion once the autoencoder is trained and the latents are cached; "
                "raise the budget or lower autoencoder_share"
            )
    budget = Budget(limits, config["trainer"]["warmup_steps"], config["trainer"]["decay"])
    sampler, guidance = build.build_sampler(config), build.build_guidance(config)
    metrics_config = config["metrics"]
    quality = quality_of(config, data)
    latent_size = data.info.image_size // autoencoder.downsampling_factor
    detail, description = sampling_detail(config)
    grid_rows = grid_order(quality, data.info)

    def draw_grid(path: Path, network: ConditionalDenoiser) -> None:
        conditions = quality.conditions(grid_rows)
        seeds = [measure.seed_of(metrics_config["seed"], row) for row in range(len(grid_rows))]
        save_grid(model.sample(conditions, seeds, latent_size, sampler, guidance, network).images, path, columns=10)

    def milestone(trainer: L.Trainer, _: L.LightningModule) -> None:
        path = run.samples / f"samples-{trainer.global_step:07d}.png"
        draw_grid(path, module.ema.average)
        log_picture(trainer, "samples", path)

    def preview(trainer: L.Trainer, _: L.LightningModule) -> None:
        few = quality.fewer(metrics_config["preview_samples"])
        metrics = measure.measure_generation(
            model, module.ema.average, few, sampler, guidance, description, "preview", track,
            metrics_config["sampling_batch"], 0, metrics_config["seed"],
        )  # fmt: skip
        log_values(trainer.loggers, {name: metric["value"] for name, metric in metrics.items() if "val/" in name})

    with logging_to(run, config, budget) as loggers:
        callbacks = [
            AtMilestones("grids", budget, config["trainer"]["grids"], milestone),
            AtMilestones("previews", budget, metrics_config["previews"], preview),
        ]
        feed = ImageDataModule(source, config["batch_size"], config["seed"], config["trainer"]["num_workers"])
        fit(run, config, module, feed, budget, callbacks, loggers)

        module.to(device).eval()
        average = module.ema.average
        draw_grid(run.samples / "final.png", average)
        metrics = measure.measure_real(quality, track)
        if vae_run is not None:
            metrics |= measure.measure_reconstruction(autoencoder, quality, track)
        metrics |= measure.measure_generation(
            model, average, quality, sampler, guidance, description, detail, track,
            metrics_config["sampling_batch"], metrics_config["latency_repeats"], metrics_config["seed"],
        )  # fmt: skip
        export = LatentDiffusion(autoencoder, average, model.objective).cpu()
        build.save_model(
            export,
            run.checkpoints,
            {
                "autoencoder": config["autoencoder"]["network"],
                **{key: config[key] for key in ("denoiser", "conditioner", "scheduler", "sampler", "guidance")},
                "data": build.info_to_dict(data.info),
            },
        )
        finish(
            run,
            "diffusion",
            data.info,
            metrics,
            budget.cost,
            loggers,
            samples="samples/final.png",
            parameters={
                "denoiser": count_parameters(network),
                "autoencoder": count_parameters(autoencoder),
            },
            cost_autoencoder=asdict(spent) if vae_run is not None else None,
            autoencoder_from=None if vae_run is None else str(vae_run),
        )
    speed = metrics.get(f"speed/images_per_s@{detail}")
    said = f", {speed['value']:.1f} images/s" if speed else ""
    say(f"{run}: {headline(metrics, detail)}{said}")


def training_source(
    config: Config,
    data: ImageData,
    autoencoder: Autoencoder,
    fingerprint: str,
    keys: tuple[str, ...],
    device: torch.device,
) -> ImageSource:
    """What diffusion is trained on: cached latents, or for the identity the images themselves."""
    flip = getattr(data, "flip", False)
    images = Flipped(data.split("train")) if flip else data.split("train")
    if autoencoder.downsampling_factor == 1:
        return images
    key = latents_key(fingerprint, data.info.fingerprint, "train", flip, keys)

    @torch.inference_mode()
    def encode(batch: Tensor) -> tuple[Tensor, Tensor]:
        posterior = autoencoder.to(device).encode(batch.to(device))
        return posterior.mean, posterior.std

    return cache_latents(
        images,
        encode,
        Path(config["cache_dir"]) / "latents" / key,
        keys,
        progress=lambda batches, count: track(batches, count, f"encoding {len(images):,} images"),
    )


def measure_statistics(autoencoder: Autoencoder, data: ImageData, device: torch.device) -> None:
    """Measures the latents of up to 5,000 training images, with the flips that training uses."""
    train = data.split("train")
    source = Flipped(train) if getattr(data, "flip", False) else train
    rows = random_subset(len(source), STATISTICS_IMAGES, seed=0)
    generator_state = torch.get_rng_state()
    autoencoder.to(device).measure_statistics(batch["image"].to(device) for batch in in_order(source, rows, 250))
    torch.set_rng_state(generator_state)


def grid_order(quality: measure.Quality, info: DataInfo) -> list[int]:
    """Positions in the reference of the images whose conditions a grid shows: ten columns, as many classes as fit."""
    rows = list(range(min(quality.samples, 1000)))
    labels = quality.conditions(rows).get("label")
    if labels is None:
        return rows[:GRID_IMAGES]
    columns = 10
    by_class: dict[int, list[int]] = {}
    for row, label in zip(rows, labels.tolist(), strict=True):
        by_class.setdefault(label, []).append(row)
    per_class = max(1, GRID_IMAGES // max(len(by_class), 1))
    chosen = sorted(by_class)[:columns] if per_class > 1 else sorted(by_class)[:GRID_IMAGES]
    return [by_class[label][i % len(by_class[label])] for i in range(per_class) for label in chosen][:GRID_IMAGES]


def sampling_detail(config: Config) -> tuple[str, dict[str, Any]]:
    """How metrics of this sampler are named, "ddim50", and what their manifest says of it."""
    options = {key: value for key, value in config["sampler"].items() if key != "_target_"}
    sampler = config["sampler"]["_target_"].rsplit(".", 1)[-1]
    guidance = {key: value for key, value in config["guidance"].items() if key != "_target_"}
    guidance["name"] = config["guidance"]["_target_"].rsplit(".", 1)[-1]
    return f"{sampler.lower()}{options['steps']}", {"sampler": sampler, **options, "guidance": guidance}


def quality_of(config: Config, data: ImageData) -> measure.Quality:
    """What distances are measured with in this run."""
    metrics = config["metrics"]
    device = device_of(config)
    extractor = build.build(metrics["features"], "metrics.features").to(device)
    return measure.Quality.choose(
        data,
        extractor,
        Path(config["cache_dir"]),
        device,
        metrics["samples"],
        metrics["reference_split"],
        metrics["seed"],
    )


def device_of(config: Config) -> torch.device:
    """Where this process computes outside of training."""
    return build.best_device(config["trainer"]["lightning"]["accelerator"])


def set_up(config: Config, seed: int) -> None:
    """Seeds, threads, and silence from what users cannot act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    L.seed_everything(seed, verbose=False)


def fit(
    run: Run,
    config: Config,
    module: L.LightningModule,
    feed: ImageDataModule,
    budget: Budget,
    callbacks: Sequence[L.Callback],
    loggers: list[Logger],
) -> None:
    """Trains until the budget is used up, from the run's last checkpoint if it has one."""
    settings = config["trainer"]
    stage = "autoencoder" if isinstance(module, AutoencoderModule) else "diffusion"
    checkpoints = Checkpoints(run.last_checkpoint, settings["checkpoint_seconds"], settings["checkpoint_steps"])
    if settings["channels_last"]:
        module = module.to(memory_format=torch.channels_last)
    trainer = L.Trainer(
        **settings["lightning"],
        max_epochs=-1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.path,
        logger=loggers,
        callbacks=[
            RandomState(),
            budget,
            *callbacks,
            TrainingProgress(f"{stage} {config['downsampling']['name']}", budget, console),
            checkpoints,
        ],
    )
    resume = str(run.last_checkpoint) if run.last_checkpoint.exists() else None
    trainer.fit(module, datamodule=feed, ckpt_path=resume)
    if checkpoints.interrupted_by is not None:
        by, steps = checkpoints.interrupted_by, budget.cost.steps
        message = f"{run}: stopped by {by.name} at step {steps:.0f}; the same command goes on from there"
        raise Interrupted(message, 128 + by.value)
    loss = trainer.callback_metrics.get("train/loss")
    if loss is not None and not math.isfinite(loss.item()):
        raise UserError(f"{run}: the loss is {loss.item()}; lower the learning rate")


@contextlib.contextmanager
def logging_to(run: Run, config: Config, budget: Budget) -> Iterator[list[Logger]]:
    """The loggers of a run: JSON lines always, wandb where asked. wandb is finished at the end, whatever happens:

    otherwise the next run of the same process writes into this one.
    """
    loggers: list[Logger] = [JsonLines(run.path / "metrics.jsonl", budget)]
    settings = config["logger"]
    if not settings["wandb"]:
        yield loggers
        return
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    mode = os.environ.get("WANDB_MODE")
    wandb_logger = WandbLogger(
        project=settings["project"],
        entity=settings["entity"],
        name=run.path.name,
        group=config["study"],
        save_dir=run.path,
        offline=settings["offline"] if mode is None else mode == "offline",
        tags=[run.config["choices"].get("data", "data"), config["downsampling"]["name"]],
    )
    wandb_logger.experiment.config.update(config)
    loggers.append(wandb_logger)
    try:
        yield loggers
    finally:
        wandb.finish()


def log_values(loggers: Iterable[Logger], values: dict[str, float]) -> None:
    """The same values to every logger."""
    for logger in loggers:
        logger.log_metrics(values)


def finish(
    run: Run,
    stage: str,
    info: DataInfo,
    metrics: measure.Metrics,
    cost: Cost,
    loggers: list[Logger],
    **more: Any,
) -> None:
    """Logs the final values and writes the summary, by which the run is complete."""
    config = run.config
    values = {name: metric["value"] for name, metric in metrics.items()}
    log_values(loggers, {**values, **{f"cost/{name}": value for name, value in asdict(cost).items()}})
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key="final", images=[str(run.path / more["samples"])])
    run.finish(
        {
            "study": config["study"],
            "name": config["name"],
            "stage": stage,
            "status": "complete",
            "seed": config["seed"],
            "choices": {"downsampling": config["downsampling"]["name"], **config.get("choices", {})},
            "data": {"name": info.name, "fingerprint": info.fingerprint, "image_size": info.image_size},
            "cost": asdict(cost),
            "cost_autoencoder": None,
            "autoencoder_from": None,
            "metrics": metrics,
            "threads": torch.get_num_threads(),
            **provenance(),
            **more,
        }
    )


def headline(metrics: measure.Metrics, detail: str) -> str:
    """The kernel distance, with its floor of real against real."""
    name = next(name for name in metrics if "kid" in name and name.endswith(f"@{detail}"))
    metric, floor = metrics[name], metrics[name.split("@")[0] + "@real"]
    samples = metric["manifest"]["samples"]
    return (
        f"{name} {metric['value']:.4f} ± {metric['standard_error']:.4f} "
        f"(real against real {floor['value']:.4f}, N = {samples:,})"
    )
