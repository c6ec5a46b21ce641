"""What can be wrong with a configuration, found before any work starts and without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from ldmlab.errors import UserError
from ldmlab.metrics.names import DISTANCES, LEAST_SAMPLES
from ldmlab.settings import is_number, is_whole
from ldmlab.tasks.run import key_of, read_run

Config = dict[str, Any]

WHOLE_NUMBERS = {
    "batch_size": 1,
    "n": 1,
    "nfe": 1,
    "data.image_size": 1,
    "autoencoder.batch_size": 1,
    "autoencoder.warmup_steps": 0,
    "metrics.samples": LEAST_SAMPLES,
    "metrics.probe_images": 0,
    "metrics.sampling_batch": 1,
    "metrics.speed_repeats": 0,
    "metrics.speed_batch": 1,
    "metrics.previews": 0,
    "metrics.preview_every": 1,
    "metrics.preview_samples": LEAST_SAMPLES,
    "trainer.warmup_steps": 0,
    "trainer.num_workers": 0,
    "trainer.threads": 1,
    "trainer.checkpoint_steps": 1,
    "trainer.grids": 0,
    "plan.devices": 1,
    "plan.assumed.classes": 1,
    "plan.assumed.semantic_classes": 1,
    "plan.assumed.box_classes": 1,
    "plan.assumed.caption_tokens": 2,
    "denoiser.channels": 1,
    "denoiser.blocks": 1,
    "denoiser.patch_size": 1,
    "denoiser.head_channels": 1,
    "denoiser.heads": 1,
}
"""Keys with the smallest value that they may have; those whose default is null may be null."""

NUMBERS = {
    "drop_probability": (0, 1),
    "drop_each_probability": (0, 0.5),
    "ema_gamma": (0, None),
    "trainer.checkpoint_seconds": (0, None),
    "optimizer.lr": (0, None),
    "optimizer.weight_decay": (0, None),
    "autoencoder.optimizer.lr": (0, None),
    "plan.memory_share": (0, 1),
}
"""Keys with the smallest and the largest value that they may have."""

SEEDS = ("seed", "data.seed", "autoencoder.seed", "metrics.seed")
LARGEST_SEED = 2**32 - 1  # of NumPy's generators

MAY_BE_ALL = ("metrics.samples",)
MAY_BE_NULL = ("nfe", "trainer.threads", "trainer.checkpoint_steps", "metrics.preview_every", "denoiser.heads")


GROUPS = (
    "budget",
    "data",
    "autoencoder",
    "downsampling",
    "denoiser",
    "scheduler",
    "conditioner",
    "sampler",
    "guidance",
    "metrics",
    "optimizer",
    "trainer",
    "logger",
)


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key, ABSENT if there is none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return ABSENT
        value = value[part]
    return value


ABSENT = object()


def check_numbers(config: Config) -> None:
    """Numbers are numbers, and in their range."""
    for key, least in WHOLE_NUMBERS.items():
        value = value_at(config, key)
        if value is ABSENT or (value is None and key in MAY_BE_NULL) or (value == "all" and key in MAY_BE_ALL):
            continue
        if not is_whole(value) or value < least:
            raise UserError(f"{key}: a whole number of {least} or more is needed, not {value}")
    for key in SEEDS:
        value = value_at(config, key)
        if value is not ABSENT and not (is_whole(value) and 0 <= value <= LARGEST_SEED):
            raise UserError(f"{key}: a whole number from 0 to {LARGEST_SEED} is needed, not {value}")
    for key, (low, high) in NUMBERS.items():
        value = value_at(config, key)
        if value is ABSENT:
            continue
        if not is_number(value) or value < low or (high is not None and value > high):
            wanted = f"of {low} or more" if high is None else f"from {low} to {high}"
            raise UserError(f"{key}: a number {wanted} is needed, not {value}")


def check_groups(config: Config) -> None:
    """Groups of settings have not been replaced by a value."""
    for group in GROUPS:
        if group in config and not isinstance(config[group], dict):
            keys = "cpu_seconds" if group == "budget" else "KEY"
            choose = "" if group == "budget" else f"; a study chooses a file by `override /{group}` in its defaults"
            raise UserError(
                f"{group}: {config[group]} is no value for a group of settings; set {group}.{keys}=...{choose}"
            )
    for group in ("sampler", "guidance"):
        if group in config and config[group].get("_target_") is None:
            raise UserError(f"{group}=as_trained is for the commands sample and evaluate; choose another here")
    if config["metrics"].get("likelihood") is not None:
        raise UserError("metrics=likelihood is for the command evaluate; choose another here")


def check_place(config: Config) -> None:
    """Study and name are names of folders within `runs_dir`."""
    name, study = config["name"], config["study"]
    if not isinstance(name, str) or not name or PurePath(name).name != name or name.startswith("."):
        raise UserError(f"name: the name of a folder is needed, without slashes, not '{name}'")
    if not isinstance(study, str) or not study or PurePath(study).is_absolute() or ".." in PurePath(study).parts:
        raise UserError(f"study: the name of a folder within {config['runs_dir']} is needed, not '{study}'")


def check_budget(config: Config) -> None:
    """At least one limit, all positive."""
    limits = {name: limit for name, limit in config["budget"].items() if limit is not None}
    if not limits:
        raise UserError(
            "budget: no limit is set; set one of " + ", ".join(f"budget.{name}" for name in config["budget"])
        )
    for name, limit in limits.items():
        if not is_number(limit) or limit <= 0:
            raise UserError(f"budget.{name}: a positive number is needed, not {limit}")
    if config["trainer"]["num_workers"] and "cpu_seconds" in limits:
        raise UserError(
            "budget.cpu_seconds: the loader's worker processes are not counted; "
            "with trainer.num_workers set budget.cpu_seconds=null and budget.seconds=..., or another limit"
        )


def check_downsampling(config: Config) -> None:
    """A factor's name says the factor."""
    downsampling = config["downsampling"]
    name, factor = downsampling["name"], downsampling["factor"]
    if name != f"f{factor}":
        raise UserError(
            f"downsampling.factor: {name} with factor {factor}; another factor is another file: "
            f"conf/downsampling/f{factor}.yaml, made after {name}.yaml"
        )


def check_sizes(config: Config) -> None:
    """The image size fits the downsampling factor, and the latent's the denoiser."""
    size, factor = config["data"]["image_size"], config["downsampling"]["factor"]
    if size % factor:
        raise UserError(f"data.image_size: {size} is not divisible by the downsampling factor {factor}")
    denoiser = config.get("denoiser")
    if denoiser and "channel_multipliers" in denoiser:
        levels = denoiser["channel_multipliers"]
        if not isinstance(levels, list) or not levels or not all(is_whole(level) for level in levels):
            raise UserError(f"denoiser.channel_multipliers: whole numbers are needed, like [1,2], not {levels}")
        halvings = denoiser.get("patch_size", 1) * 2 ** (len(levels) - 1)
        if (size // factor) % halvings:
            raise UserError(
                f"denoiser.channel_multipliers: the latent is {size // factor} x {size // factor} "
                f"({size} / f{factor}), which {len(levels)} levels cannot halve "
                "evenly; take fewer levels, a smaller downsampling factor or larger images"
            )


def check_trainer(config: Config) -> None:
    """What this version of the lab can train with."""
    lightning = config["trainer"]["lightning"]
    devices, nodes = lightning.get("devices"), lightning.get("num_nodes", 1)
    if devices not in ("auto", "-1", -1) and not (is_whole(devices) and devices > 0):
        raise UserError(f"trainer.lightning.devices: a number of devices, or auto for all, is needed, not {devices}")
    if not is_whole(nodes) or nodes < 1:
        raise UserError(f"trainer.lightning.num_nodes: a whole number of 1 or more is needed, not {nodes}")
    if lightning.get("strategy", "auto") not in STRATEGIES:
        raise UserError(
            f"trainer.lightning.strategy: one of {', '.join(STRATEGIES)} is needed, not {lightning['strategy']}"
        )
    muon = str(value_at(config, "optimizer._target_")).endswith(".Muon")
    if lightning.get("strategy") == "fsdp" and muon:
        raise UserError("optimizer: muon needs whole matrices, of which fsdp has parts; use optimizer=adamw")
    precision = str(lightning.get("precision"))
    precision = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}.get(precision, precision)
    if precision.endswith("-true") and precision != "32-true":
        raise UserError(f"trainer.lightning.precision: {precision} is not supported; use 32-true or bf16-mixed")
    adversarial = value_at(config, "autoencoder.adversarial") not in (ABSENT, None)
    if adversarial and lightning.get("gradient_clip_algorithm") not in (None, "norm"):
        raise UserError("trainer.lightning.gradient_clip_algorithm: with autoencoder/adversarial only norm is possible")
    if precision == "16-mixed" and adversarial:
        raise UserError(
            "trainer.lightning.precision: 16-mixed scales the loss of one optimiser only, and autoencoder/adversarial "
            "has two; use bf16-mixed or 32-true"
        )
    if precision.endswith("-mixed") and lightning.get("gradient_clip_val"):
        for key in ("optimizer.fused", "autoencoder.optimizer.fused"):
            if value_at(config, key) is True:
                raise UserError(
                    f"{key}: a fused optimiser cannot clip gradients with precision {precision}: set {key}=false"
                )


def check_features(metrics: Config) -> None:
    """The extractor was chosen as a group."""
    if not isinstance(metrics["features"], dict):
        raise UserError(
            f"metrics.features: choose a file of the group with a slash: metrics/features={metrics['features']}"
        )


def check_metrics(config: Config) -> None:
    """What is measured is there."""
    metrics = config["metrics"]
    if metrics["reference_split"] not in ("train", "val"):
        raise UserError(f"metrics.reference_split: train or val, not {metrics['reference_split']}")
    check_features(metrics)
    wanted = metrics["distances"]
    unknown = [name for name in wanted if name not in DISTANCES] if isinstance(wanted, list) else [wanted]
    if unknown:
        raise UserError(f"metrics.distances: a list of {', '.join(DISTANCES)} is needed; there is no {unknown[0]}")
    if not {"kid", "fd"} & set(wanted):
        raise UserError("metrics.distances: kid or fd must be among them, by which runs are compared")
    count = metrics["reference_samples"]
    if count not in (None, "all") and not (is_whole(count) and count >= LEAST_SAMPLES):
        raise UserError(
            f"metrics.reference_samples: all, null or a number of {LEAST_SAMPLES} or more is needed, not {count}"
        )
    if metrics["reference"] is not None and not Path(metrics["reference"]).is_file():
        raise UserError(f"metrics.reference: no such file: {metrics['reference']}")


def check_likelihood(likelihood: Any) -> None:
    """The bound was chosen as a group, and its numbers are null or positive."""
    if not isinstance(likelihood, dict) or not {"variance", "steps", "times"} <= likelihood.keys():
        raise UserError(f"metrics.likelihood: choose the group metrics=likelihood, not {likelihood}")
    for key, least in (("steps", 2), ("times", 1)):
        value = likelihood[key]
        if value is not None and not (is_whole(value) and value >= least):
            raise UserError(
                f"metrics.likelihood.{key}: null or a whole number of {least} or more is needed, not {value}"
            )


def check_data_path(config: Config) -> None:
    """A data folder that is given exists."""
    path = config["data"].get("path")
    if path is not None and not Path(path).exists():
        raise UserError(f"data.path: no such folder or file: {path}")


def check_autoencoder_from(config: Config, overrides: Sequence[str]) -> None:
    """The autoencoder is a complete run of stage one for the same factor, and nobody asks for other settings of it."""
    if config["autoencoder_from"] is None:
        return
    run = read_run(config["autoencoder_from"], "autoencoder", "autoencoder_from")
    trained, wanted = run.config["downsampling"]["factor"], config["downsampling"]["factor"]
    if trained != wanted:
        raise UserError(
            f"autoencoder_from: {run} was trained for f{trained}, this run is for f{wanted}: "
            f"use downsampling=f{trained} or another autoencoder"
        )
    for override in overrides:
        key = key_of(override)
        if key.startswith(("autoencoder.", "downsampling.")) and value_at(config, key) != value_at(run.config, key):
            raise UserError(
                f"{key}: {run} was trained with {value_at(run.config, key)}; leave it out, or train another autoencoder"
            )


def check_share(config: Config) -> None:
    """Stage one leaves something to stage two."""
    share = config["autoencoder_share"]
    if not is_number(share) or not 0 < share < 1:
        raise UserError(f"autoencoder_share: a number between 0 and 1 is needed, not {share}")


def check_both(config: Config) -> None:
    """What the stages have in common."""
    check_groups(config)
    check_autoencoder(config)
    check_place(config)
    check_numbers(config)
    check_budget(config)
    check_downsampling(config)
    check_sizes(config)
    check_trainer(config)
    check_metrics(config)
    check_data_path(config)


def check_autoencoder(config: Config) -> None:
    """What is trained has an optimiser, and what is pretrained has none."""
    settings = config["autoencoder"]
    pretrained = "path" in settings
    if pretrained and settings["optimizer"] is not None:
        raise UserError("autoencoder.optimizer: a pretrained autoencoder is not trained; leave it out")
    if not pretrained and settings["optimizer"] is None:
        raise UserError("autoencoder.optimizer: null is for autoencoder=pretrained; this one has to be trained")


def check_vae(config: Config) -> None:
    """Everything about a stage-one configuration that needs no data."""
    if config["downsampling"]["factor"] == 1:
        raise UserError("downsampling: f1 is the identity and has nothing to train; use it with train-ldm")
    check_both(config)


def check_ldm(config: Config, overrides: Sequence[str]) -> None:
    """Everything about a stage-two configuration that needs no data."""
    check_both(config)
    check_share(config)
    check_autoencoder_from(config, overrides)


STRATEGIES = ("auto", "ddp", "fsdp")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def check_plan(config: Config, overrides: Sequence[str]) -> None:
    """The settings of a run that is only planned, and of planning."""
    check_ldm(config, overrides)
    plan = config["plan"]
    if plan["stage"] not in ("both", "autoencoder", "diffusion"):
        raise UserError(f"plan.stage: both, autoencoder or diffusion is needed, not {plan['stage']}")
    for key, value in plan["utilisation"].items():
        if not is_number(value) or not 0 < value <= 1:
            raise UserError(f"plan.utilisation.{key}: a number above 0, up to 1, is needed, not {value}")
    for name, gpu in plan["gpus"].items():
        missing = [key for key in ("fp32", "memory", "link") if not isinstance(gpu, dict) or key not in gpu]
        if missing:
            raise UserError(f"plan.gpus.{name}: {missing[0]} is missing; see conf/plan.yaml")
        for key, value in gpu.items():
            if key not in (*PRECISIONS, "memory", "link") or not is_number(value) or value <= 0:
                raise UserError(f"plan.gpus.{name}.{key}: {', '.join(PRECISIONS)}, memory and link are numbers above 0")


def check_measuring(config: Config, nullable: Sequence[str] | None = None) -> None:
    """Numbers of the commands that train nothing. Those that are `nullable` may be null: all, unless they are named."""
    metrics = config.get("metrics", {})
    given = {
        k: v for k, v in metrics.items() if v is not None or (nullable is not None and f"metrics.{k}" not in nullable)
    }
    check_numbers({**config, "metrics": given})
