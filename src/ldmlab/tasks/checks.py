"""What can be wrong with a configuration, found before any work starts and without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldmlab.errors import UserError
from ldmlab.tasks.run import read_run

Config = dict[str, Any]


def check_budget(config: Config) -> None:
    """At least one limit, all positive."""
    limits = {name: limit for name, limit in config["budget"].items() if limit is not None}
    if not limits:
        raise UserError(
            "budget: no limit is set; set one of " + ", ".join(f"budget.{name}" for name in config["budget"])
        )
    for name, limit in limits.items():
        if not isinstance(limit, int | float) or limit <= 0:
            raise UserError(f"budget.{name}: a positive number is needed, not {limit}")


def check_sizes(config: Config) -> None:
    """The image size fits the downsampling factor, and the latent's the denoiser."""
    size, factor = config["data"]["image_size"], config["downsampling"]["factor"]
    if size % factor:
        raise UserError(f"data.image_size: {size} is not divisible by the downsampling factor {factor}")
    denoiser = config.get("denoiser")
    if denoiser and "channel_multipliers" in denoiser:
        halvings = denoiser["patch_size"] * 2 ** (len(denoiser["channel_multipliers"]) - 1)
        if (size // factor) % halvings:
            raise UserError(
                f"denoiser.channel_multipliers: the latent is {size // factor} x {size // factor} "
                f"({size} / f{factor}), which {len(denoiser['channel_multipliers'])} levels cannot halve "
                "evenly; take fewer levels, a smaller downsampling factor or larger images"
            )


def check_data_path(config: Config) -> None:
    """A data folder that is given exists."""
    path = config["data"].get("path")
    if path is not None and not Path(path).exists():
        raise UserError(f"data.path: no such folder or file: {path}")


def check_autoencoder_from(config: Config) -> None:
    """The autoencoder is a complete run of stage one, trained for the same factor."""
    if config["autoencoder_from"] is None:
        return
    run = read_run(config["autoencoder_from"], "autoencoder", "autoencoder_from")
    trained, wanted = run.config["downsampling"]["factor"], config["downsampling"]["factor"]
    if trained != wanted:
        raise UserError(
            f"autoencoder_from: {run} was trained for f{trained}, this run is for f{wanted}: "
            f"use downsampling=f{trained} or another autoencoder"
        )


def check_share(config: Config) -> None:
    """Stage one leaves something to stage two."""
    if not 0 < config["autoencoder_share"] < 1:
        raise UserError(f"autoencoder_share: a number between 0 and 1 is needed, not {config['autoencoder_share']}")


def check_vae(config: Config) -> None:
    """Everything about a stage-one configuration that needs no data."""
    if config["downsampling"]["factor"] == 1:
        raise UserError("downsampling: f1 is the identity and has nothing to train; use it with train-ldm")
    check_budget(config)
    check_sizes(config)
    check_data_path(config)


def check_ldm(config: Config) -> None:
    """Everything about a stage-two configuration that needs no data."""
    check_budget(config)
    check_sizes(config)
    check_data_path(config)
    check_share(config)
    check_autoencoder_from(config)
