"""Stage one: the autoencoder, its latent statistics and its reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from ldmlab import processes
from ldmlab.autoencoders.base import Autoencoder
from ldmlab.callbacks.budget import Budget, Cost, Limits, Stopwatch
from ldmlab.callbacks.pictures import log_picture, save_grid
from ldmlab.data.loader import images_at_once, in_order, random_subset, training_images
from ldmlab.metrics.speed import count_parameters
from ldmlab.modules.autoencoder import AutoencoderModule, latent_report
from ldmlab.modules.image_data import ImageDataModule
from ldmlab.tasks import build, measure
from ldmlab.tasks.console import say
from ldmlab.tasks.quality import Metrics, quality_of
from ldmlab.tasks.recipes import recipe_key, recipe_of
from ldmlab.tasks.run import Run, RunState, run_name
from ldmlab.tasks.sharing import only_ours, open_data, share_of, state_of
from ldmlab.tasks.training import (
    PREVIEWED,
    device_of,
    finish,
    fit,
    log_preview,
    log_values,
    logging_to,
    looks_on_the_way,
    set_up,
    try_trainer,
)
from ldmlab.types import ImageData

Config = dict[str, Any]

STAGE_TWO = ("trainer.warmup_steps", "trainer.decay")  # of the trainer's settings, what does not concern stage one
STATISTICS_IMAGES = 5_000
GRID_IMAGES = 20
CODE_METRICS = ("codebook_perplexity", "codebook_usage")


def train_vae(config: Config, overrides: list[str], made_by: tuple[str, list[str]] | None = None) -> Run:
    """Stage one from a checked configuration; a complete run is returned as it is, an interrupted one goes on.

    `overrides` make the automatic name. `made_by` is the command and the overrides that the run's folder records,
    where they are not `train-vae` with these.
    """
    if config["name"] == "auto":
        config["name"] = run_name("vae", config["downsampling"]["name"], overrides, config.get("swept", ()))
    path = Path(config["runs_dir"]) / config["study"] / config["name"]
    if made_by is None:
        run = Run(path, config, ignored=STAGE_TWO)
    else:
        # a study of diffusion takes the autoencoder that is there, whatever was measured of it
        run = Run(path, config, (*STAGE_TWO, "metrics"), shared=True)
    device = device_of(config)
    with only_ours(run):
        state = state_of(run)
        if state == "complete":
            say(f"{run}: done already")
        else:
            _train_vae(run, state, config, made_by or ("train-vae", overrides), device)
    return run


def _train_vae(run: Run, state: RunState, config: Config, made_by: tuple[str, list[str]], device: torch.device) -> None:
    settings = config["autoencoder"]
    # everything that can be wrong is built and tried before the run's folder is made
    data = open_data(config)
    train_images, val = training_images(data), data.split("val")
    quality = quality_of(config, data, device)
    try_trainer(config)
    set_up(config, settings["seed"])
    autoencoder = build.build_autoencoder(config)
    budget = Budget(Limits(**config["budget"]), settings.get("warmup_steps", 0), settings.get("decay", False))
    module = None
    if settings["optimizer"] is not None:
        module = build.build_autoencoder_module(config, autoencoder, budget)
        autoencoder.trained_against = module.reconstruction.trained_against
        try_out(module, data.info.image_size)
        batch_size = share_of(settings["batch_size"], "autoencoder.batch_size")
    quality.refuse(autoencoder.trained_against)
    processes.from_first(lambda: run.prepare(state, *made_by, data.info.fingerprint))
    if autoencoder.scaled:
        say(f"{run}: latents scaled as {settings['path']} says; autoencoder.scaling=measured fits them to the data")

    fixed = val.__getitems__(range(min(GRID_IMAGES, len(val))))["image"]

    def draw_grid(path: Path) -> None:
        with torch.inference_mode():
            images = fixed.to(autoencoder.latent_mean.device)
            pairs = torch.stack([images, autoencoder.there_and_back(images)], 1)
        if processes.rank() == 0:
            save_grid(pairs.flatten(0, 1), path, columns=10)

    def milestone(trainer: L.Trainer, _: L.LightningModule) -> None:
        path = run.samples / f"reconstructions-{trainer.global_step:07d}.png"
        draw_grid(path)
        log_picture(trainer, "reconstructions", path)

    few = quality.fewer(config["metrics"]["preview_samples"], PREVIEWED)

    def preview(trainer: L.Trainer, _: L.LightningModule) -> None:
        metrics = measure.measure_reconstruction(autoencoder, few, "in training", "-preview")
        log_preview(trainer, metrics, budget)

    with logging_to(run, config, budget) as loggers:
        if module is not None:
            workers = config["trainer"]["num_workers"]
            feed = ImageDataModule(train_images, batch_size, settings["seed"], workers)
            fit(run, config, module, feed, budget, looks_on_the_way(config, budget, milestone, preview), loggers)
        autoencoder.to(device).eval()
        statistics = Stopwatch()
        statistics.start()
        measure_statistics(autoencoder, data, device)
        statistics.stop()
        description = build.description_of(autoencoder)
        fingerprint = processes.from_first(lambda: build.save_model(autoencoder, run.checkpoints, description))
        with budget.aside():
            draw_grid(run.samples / "reconstructions-final.png")
            metrics = measure.measure_real(quality)
            metrics |= measure.measure_reconstruction(autoencoder, quality, fingerprint)
        rows = random_subset(len(val), STATISTICS_IMAGES, 0)
        batches = in_order(val, rows, images_at_once(data.info.image_size))
        report = latent_report(autoencoder, (batch["image"].to(device) for batch in batches))
        metrics |= code_metrics(report, autoencoder.codes, len(rows))
        log_values(loggers, named_values(report))
        finish(
            run,
            "autoencoder",
            data.info,
            metrics,
            budget,
            loggers,
            more_cost=Cost(**statistics.cost),
            measured={recipe_key(quality, "reconstruction"): recipe_of(config)},
            samples="samples/reconstructions-final.png",
            parameters={"autoencoder": count_parameters(autoencoder)},
            latents=report,
        )
    psnr = metrics[f"{quality.split}/recon_psnr"]["value"]
    say(f"{run}: PSNR {psnr:.2f} dB, {measure.headline(metrics, 'reconstruction')}")


def try_out(module: AutoencoderModule, image_size: int) -> None:
    """Computes one loss with all that training may bring, leaving no trace: in evaluation no codebook begins.

    Raises:
        UserError: something does not fit together.
    """
    image = torch.zeros(2, 3, image_size, image_size)
    module.eval()
    build.try_out("autoencoder", lambda: (module.configure_optimizers(), module.hardest_loss({"image": image})))
    module.train()


def measure_statistics(autoencoder: Autoencoder, data: ImageData, device: torch.device) -> None:
    """Measures the latents of up to 5,000 training images, with the flips that training uses."""
    source = training_images(data)
    rows = random_subset(len(source), STATISTICS_IMAGES, seed=0)
    batches = in_order(source, rows, images_at_once(data.info.image_size))
    # the same draws wherever the generator stands: a run that was stopped has drawn fewer numbers since it went on
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder.to(device).measure_statistics(batch["image"].to(device) for batch in batches)


def code_metrics(report: dict[str, float | list[float]], codes: int | None, samples: int) -> Metrics:
    """How many of its codes an autoencoder uses for images of the validation split; nothing for continuous latents."""
    manifest = {"split": "val", "samples": samples, "codes": codes}
    return {f"val/{name}": {"value": report[name], "manifest": manifest} for name in CODE_METRICS if name in report}


def named_values(report: dict[str, float | list[float]]) -> dict[str, float]:
    """The latents' report as single values to log: `val/latent_min`, `val/latent_kl@channel0`, ..."""
    values: dict[str, float] = {}
    for name, value in report.items():
        if name in CODE_METRICS:
            continue  # logged under their own names
        if isinstance(value, list):
            quantity = name.removesuffix("_per_channel")
            values |= {f"val/latent_{quantity}@channel{i}": channel for i, channel in enumerate(value)}
        else:
            values[f"val/latent_{name}"] = value
    return values
