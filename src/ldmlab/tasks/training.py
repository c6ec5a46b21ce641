"""What training a stage takes, whichever it is: seeds, the Trainer, loggers, and the summary at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger

from ldmlab import processes
from ldmlab.callbacks.budget import Budget, Cost
from ldmlab.callbacks.jsonl import JsonLines
from ldmlab.callbacks.pictures import AtMilestones
from ldmlab.callbacks.progress import TrainingProgress
from ldmlab.callbacks.resume import Checkpoints, RandomState, StraightToDisk
from ldmlab.errors import Interrupted, UserError
from ldmlab.modules.autoencoder import AutoencoderModule
from ldmlab.modules.image_data import ImageDataModule
from ldmlab.tasks import build
from ldmlab.tasks.console import console
from ldmlab.tasks.quality import Metrics
from ldmlab.tasks.run import Run, provenance, write_text
from ldmlab.tasks.sharing import all_finite, check_agreement, draw_apart, strategy_for
from ldmlab.types import DataInfo

Config = dict[str, Any]

PREVIEWED = ("kid", "fd")  # what a cheap look on the way measures

# Arguments of lightning.Trainer that are not the user's.
OURS: dict[str, Any] = {
    "max_epochs": -1,
    "use_distributed_sampler": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}

THREADS = torch.get_num_threads()
"""What torch chose for this machine, before any job of this process chose otherwise."""


def set_up(config: Config, seed: int) -> None:
    """Seeds and threads."""
    threads = config["trainer"]["threads"]
    if threads is None and processes.world_size() > 1:
        threads = max(1, (os.cpu_count() or 1) // processes.on_this_machine())
    torch.set_num_threads(threads or THREADS)
    L.seed_everything(seed, verbose=False)


def device_of(config: Config) -> torch.device:
    """Where this process computes; it has joined the others of the run from here on, where there are any."""
    return processes.join(build.best_device(config["trainer"]["lightning"]["accelerator"]))


def trainer_arguments(config: Config) -> dict[str, Any]:
    """What `conf/trainer` says of lightning.Trainer, on the device that the whole run uses."""
    arguments = dict(config["trainer"]["lightning"])
    if device_of(config).type == "cpu" and arguments.get("accelerator") == "auto":
        arguments["accelerator"] = "cpu"
    here = processes.on_this_machine()
    arguments |= {"devices": here, "num_nodes": processes.world_size() // here, "strategy": "auto"}
    return {**arguments, **OURS}


def try_trainer(config: Config) -> None:
    """Raises UserError if Lightning cannot make a Trainer of the settings; from here on Lightning is silent."""
    # what it says of devices, workers and its own services is nothing that users can act on
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    ours = [key for key in OURS if key in config["trainer"]["lightning"]]
    if ours:
        raise UserError(f"trainer.lightning.{ours[0]}: the lab sets this itself")
    try:
        L.Trainer(**trainer_arguments(config), logger=False)
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"trainer.lightning: {str(error).splitlines()[0]}") from error


def looks_on_the_way(
    config: Config,
    budget: Budget,
    grid: Callable[[L.Trainer, L.LightningModule], None],
    preview: Callable[[L.Trainer, L.LightningModule], None],
) -> list[L.Callback]:
    """Pictures and cheap measurements over training, as often as the configuration says."""
    metrics = config["metrics"]
    return [
        AtMilestones("grids", budget, config["trainer"]["grids"], grid),
        AtMilestones("previews", budget, metrics["previews"], preview, metrics["preview_every"]),
    ]


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
    draw_apart(feed.seed)
    stage = "autoencoder" if isinstance(module, AutoencoderModule) else "diffusion"
    checkpoints = Checkpoints(run.last_checkpoint, settings["checkpoint_seconds"], settings["checkpoint_steps"])
    if settings["channels_last"]:
        module = module.to(memory_format=torch.channels_last)
    arguments = trainer_arguments(config)
    if not module.automatic_optimization:
        # such a module accumulates and clips by itself, and Lightning refuses to be asked for it; Lightning counts
        # batches then, where this many make an optimiser step, and only those that do are to be logged
        batches = arguments.get("accumulate_grad_batches", 1) * (arguments.get("log_every_n_steps") or 50)
        arguments |= {"accumulate_grad_batches": 1, "gradient_clip_val": None, "log_every_n_steps": batches}
    trainer = L.Trainer(
        **arguments | {"strategy": strategy_for(module, config)},
        default_root_dir=run.path,
        logger=loggers,
        plugins=[StraightToDisk()],
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
    check_agreement(module)
    if checkpoints.interrupted_by is not None:
        by, steps = checkpoints.interrupted_by, budget.cost.steps
        message = f"{run}: stopped by {by.name} at step {steps:.0f}; the same command goes on from there"
        raise Interrupted(message, 128 + by.value)
    # with gradients that are scaled (16-mixed), steps without a finite loss are left out, and weights stay as they were
    if not all_finite([*module.parameters(), trainer.callback_metrics.get("train/loss", torch.zeros(()))]):
        raise UserError(f"{run}: training has diverged, its loss or weights are not finite: lower the learning rate")


@contextlib.contextmanager
def logging_to(run: Run, config: Config, budget: Budget) -> Iterator[list[Logger]]:
    """The loggers of a run: JSON lines always, wandb where asked. wandb is finished at the end, whatever happens:

    otherwise the next run of the same process writes into this one.
    """
    loggers: list[Logger] = [JsonLines(run.path / "metrics.jsonl", budget)]
    settings = config["logger"]
    if not settings["wandb"] or processes.rank() > 0:
        yield loggers
        return
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or ("offline" if settings["offline"] else "online")
    try:
        # made here and not by Lightning, which asks wandb for what it no longer has
        experiment = wandb.init(
            project=settings["project"],
            entity=settings["entity"],
            id=wandb_id(run),
            resume="allow",
            name=run.path.name,
            group=config["study"],
            dir=run.path.resolve(),  # wandb's own process may stand in another folder
            mode=mode,
            tags=[config["choices"]["data"], config["downsampling"]["name"]],
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.Error as error:
        message = str(error).splitlines()[0]
        raise UserError(f"logger: wandb: {message}; log in with `wandb login`, or use logger.offline=true") from error
    link_for_the_study(run)
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    loggers.append(CostedWandb(experiment, budget))
    try:
        yield loggers
    finally:
        wandb.finish()


def link_for_the_study(run: Run) -> None:
    """Links wandb's folders of a run into one of its study, as `wandb leet` shows runs side by side that lie so."""
    together = run.path.parent / "wandb"
    with contextlib.suppress(OSError):  # some disks know no links; the folders themselves are where they were
        together.mkdir(exist_ok=True)
        for link in together.iterdir():
            if link.is_symlink() and not link.exists():
                link.unlink()  # of a run that was deleted
        for folder in (run.path / "wandb").glob("*run-*"):
            if folder.is_dir() and not folder.is_symlink() and not (link := together / folder.name).is_symlink():
                link.symlink_to(os.path.relpath(folder, together), target_is_directory=True)


def wandb_id(run: Run) -> str:
    """The run's name at wandb, drawn once: a run that was cut off and goes on is one run there too."""
    path = run.path / "wandb" / "id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_text(path, secrets.token_hex(4))
    return path.read_text()


class CostedWandb(WandbLogger):
    """wandb, with what training has cost so far beside every value, so that curves can be drawn over any cost."""

    def __init__(self, experiment: Any, budget: Budget):
        super().__init__(experiment=experiment)
        self.budget = budget

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs the values with the cost."""
        cost = {f"cost/{name}": value for name, value in asdict(self.budget.cost).items()}
        super().log_metrics({**metrics, **cost}, step)


def log_values(loggers: Iterable[Logger], values: dict[str, float]) -> None:
    """The same values to every logger."""
    for logger in loggers:
        logger.log_metrics(values)


def log_preview(trainer: L.Trainer, metrics: Metrics, budget: Budget) -> None:
    """What a cheap look on the way found, and what looking has cost so far."""
    budget.measuring.lap()
    values = {name: metric["value"] for name, metric in metrics.items()}
    log_values(trainer.loggers, {**values, "cost/measuring_seconds": budget.measuring.seconds})


def finish(
    run: Run,
    stage: str,
    info: DataInfo,
    metrics: Metrics,
    budget: Budget,
    loggers: list[Logger],
    more_cost: Cost | None = None,
    **more: Any,
) -> None:
    """Logs the final values and writes the summary, by which the run is complete."""
    config = run.config
    values = {name: metric["value"] for name, metric in metrics.items()}
    log_values(loggers, {**values, "cost/measuring_seconds": budget.measuring.seconds})
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key="final", images=[str(run.path / more["samples"])])
            rows = [
                [name, metric["value"], metric.get("standard_error"), json.dumps(metric["manifest"])]
                for name, metric in metrics.items()
            ]
            logger.log_table("measurements", ["metric", "value", "standard error", "how it was measured"], rows)
    summary = {
        "study": config["study"],
        "name": config["name"],
        "stage": stage,
        "status": "complete",
        "seed": config["seed"],
        "choices": {"downsampling": config["downsampling"]["name"], **config.get("choices", {})},
        "data": {"name": info.name, "fingerprint": info.fingerprint, "image_size": info.image_size},
        "cost": asdict(budget.cost + (more_cost or Cost())),
        "cost_measuring": budget.measuring.cost,
        "cost_autoencoder": None,
        "autoencoder_from": None,
        "metrics": metrics,
        "threads": torch.get_num_threads(),
        "processes": processes.world_size(),
        **provenance(),
        **more,
    }
    processes.from_first(lambda: run.finish(summary))
