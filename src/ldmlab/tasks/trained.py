"""A finished run, ready to be measured again: with its own settings, or with others in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ldmlab.autoencoders.base import Autoencoder
from ldmlab.callbacks.budget import Stopwatch
from ldmlab.errors import UserError
from ldmlab.metrics.fidelity import Judge, Probe
from ldmlab.modules.model import LatentDiffusion
from ldmlab.tasks import build, checks, measure, training
from ldmlab.tasks.measure_fidelity import judges_of, measure_references
from ldmlab.tasks.measure_likelihood import chain_of, measure_likelihood
from ldmlab.tasks.quality import Metrics, Quality, number_of, quality_of
from ldmlab.tasks.recipes import measure_diffusion, recipe_key
from ldmlab.tasks.run import Run
from ldmlab.tasks.sample import with_overrides
from ldmlab.types import ImageData

Config = dict[str, Any]

REFERENCE = ("samples", "reference_split", "reference_samples", "seed")
"""Settings that decide which images are compared with which; a reference file has a name of its own in the metric's."""


@dataclass(frozen=True)
class Done:
    """What was measured as one recipe says: `floors` are of real images, and among `metrics` where they are new."""

    key: str
    detail: str
    metrics: Metrics
    floors: Metrics
    cost: Config


@dataclass
class Trained:
    """A complete run with its model and its data, ready to be measured."""

    run: Run
    config: Config
    data: ImageData
    device: torch.device
    model: LatentDiffusion | None
    autoencoder: Autoencoder
    fingerprint: str

    @classmethod
    def load(cls, run: Run, data_path: str | None, cache_dir: str | None) -> Trained:
        """The run's model and data; those may have moved to `data_path`, caches to `cache_dir`."""
        summary = run.summary or {}
        if "measured" not in summary:
            raise UserError(f"from: {run} was made by an older version of ldmlab, which cannot be measured: train anew")
        device = training.device_of(run.config)
        config = {
            **run.config,
            "data": moved(run.config["data"], data_path, cache_dir),
            "cache_dir": cache_dir or run.config["cache_dir"],
        }
        model = None
        if summary["stage"] == "diffusion":
            model, description = build.load_diffusion(run.path)
            autoencoder, fingerprint = model.autoencoder, description["fingerprint"]
            config |= {key: description[key] for key in ("sampler", "guidance")}
        else:
            autoencoder, fingerprint = build.load_autoencoder(run.path, "from")
        training.set_up(config, config["seed"])
        data = build.build_data(config)
        if data.info.fingerprint != summary["data"]["fingerprint"]:
            raise UserError(
                f"from: the data of {run} has changed since it was trained; its numbers would not be comparable"
            )
        network = model or autoencoder
        if config["trainer"]["channels_last"]:
            network.to(memory_format=torch.channels_last)
        network.to(device)
        return cls(run, config, data, device, model, autoencoder, fingerprint)

    def recipe(self, asked: Config) -> Config:
        """The run's own settings, with what is asked for in place of them; what has another reference has a suffix."""
        own, wanted = self.config["metrics"], asked["metrics"]
        checks.check_features(wanted)
        features = with_overrides(own["features"], wanted["features"], "metrics/features")
        changes = {key: value for key, value in wanted.items() if value is not None and key != "features"}
        metrics = {**own, **changes, "features": features}
        checks.check_metrics({"metrics": metrics})
        available = len(self.data.split(metrics["reference_split"]))
        recipe: Config = {"metrics": metrics, "suffix": suffix_of(own, metrics, available)}
        if metrics.get("likelihood") is not None:
            checks.check_likelihood(metrics["likelihood"])
            if self.model is None:
                raise UserError(f"metrics: {self.run} is an autoencoder; likelihood is that of a diffusion model")
            refuse(asked, "the variational bound is of the model alone, without a sampler")
            chain_of(self.model, metrics["likelihood"])
            return recipe
        if self.model is None:
            refuse(asked, f"{self.run} is an autoencoder, which samples nothing")
            return recipe
        recipe |= {group: with_overrides(self.config[group], asked[group], group) for group in ("sampler", "guidance")}
        recipe |= build.training_of(self.config)
        if asked["nfe"] is not None:
            recipe["sampler"]["steps"] = build.steps_for(recipe["sampler"], asked["nfe"])
        # built here for what can be wrong with them, before images are measured
        build.build_sampler(recipe, self.model.objective)
        build.build_guidance(recipe, self.model)
        return recipe

    def measure(self, recipe: Config, known: Metrics) -> Done:
        """Measures as `recipe` says; floors and reconstructions only where they are not `known`."""
        watch = Stopwatch()
        watch.start()
        quality = quality_of({**self.config, "metrics": recipe["metrics"]}, self.data, self.device)
        if recipe["metrics"].get("likelihood"):
            key, detail, metrics = self._measure_bound(quality, recipe)
            floors: Metrics = {}
        else:
            detail, metrics, floors = self._measure_quality(quality, recipe, known)
            key = recipe_key(quality, detail)
        watch.stop()
        return Done(key, detail, metrics, floors, watch.cost)

    def _measure_quality(self, quality: Quality, recipe: Config, known: Metrics) -> tuple[str, Metrics, Metrics]:
        quality.refuse(self.autoencoder.trained_against)
        suffix = recipe["suffix"]
        floors = measure.measure_real(quality, suffix)
        metrics: Metrics = {} if all(same_reference(known.get(k), floors[k]) for k in floors) else dict(floors)
        lpips = quality.lpips and f"{quality.split}/recon_{quality.lpips.name}{suffix and '@' + suffix[1:]}"
        # other features or other images than the run's own have floors of their own
        new = bool(metrics) or (lpips is not None and lpips not in known)
        if self.model is None or (new and self.autoencoder.downsampling_factor > 1):
            metrics |= measure.measure_reconstruction(self.autoencoder, quality, self.fingerprint, suffix)
        if self.model is None:
            return f"reconstruction{suffix}", metrics, floors
        conditioner = self.model.network.conditioner
        judges = judges_of(quality, conditioner, recipe["metrics"])
        # another number of images to fit a probe to is another probe, with a ceiling of its own
        probes = [judge.name for judge in judges if isinstance(judge, Probe)]
        if new or any(f"{quality.split}/{name}@real{suffix}" not in known for name in probes):
            metrics |= measure_references(self.autoencoder, conditioner, judges, quality, self.fingerprint, suffix)
        detail, generated = self._measure_diffusion(quality, recipe, judges)
        return detail, metrics | generated, floors

    def _measure_bound(self, quality: Quality, recipe: Config) -> tuple[str, str, Metrics]:
        assert self.model is not None
        settings = recipe["metrics"]["likelihood"]
        steps, variance = chain_of(self.model, settings)
        detail = f"chain{steps}-{variance}{recipe['suffix']}"
        description = {"model": self.fingerprint, "ema": True}
        seed = recipe["metrics"]["seed"]
        metrics = measure_likelihood(self.model, quality, settings, seed, description, detail)
        return f"{quality.split}/bound@{detail}", detail, metrics

    def _measure_diffusion(self, quality: Quality, recipe: Config, judges: Sequence[Judge]) -> tuple[str, Metrics]:
        assert self.model is not None
        detail, description = measure.sampling_detail(recipe, self.config["guidance"])
        description |= {"model": self.fingerprint}
        detail += recipe["suffix"]
        network = self.model.network
        return detail, measure_diffusion(self.model, network, quality, recipe, description, detail, judges)


def refuse(asked: Config, reason: str) -> None:
    """Raises UserError if a command asks for a way to sample."""
    for group in ("sampler", "guidance", "nfe"):
        settings = asked[group].values() if isinstance(asked[group], dict) else [asked[group]]
        if any(value is not None for value in settings):
            raise UserError(f"{group}: {reason}; leave it out")


def same_reference(known: Config | None, metric: Config) -> bool:
    """Whether a metric is known, and was taken to the same reference."""
    return known is not None and known["manifest"]["reference_hash"] == metric["manifest"]["reference_hash"]


def suffix_of(own: Config, metrics: Config, available: int) -> str:
    """What the names of metrics say of another choice of images than the run's own; nothing where it is the same.

    `available` is the number of images in the split that they are chosen from.
    """
    if all(metrics[key] == own[key] for key in REFERENCE):
        return ""
    count = metrics["reference_samples"]
    reference = "" if count is None else f"-ref{count}"
    split = "" if metrics["reference_split"] == own["reference_split"] else f"-{metrics['reference_split']}"
    return f"-n{number_of(metrics['samples'], available)}-seed{metrics['seed']}{reference}{split}"


def moved(data: Config, path: str | None, cache_dir: str | None) -> Config:
    """The run's data config, for data that are at `path` now and a cache at `cache_dir`; None is where they were."""
    changes: Config = {}
    if path is not None:
        places = [key for key in ("path", "root") if key in data]
        if not places:
            raise UserError("data_path: the data of this run are in no folder of their own")
        changes[places[0]] = path
    if cache_dir is not None and "cache_dir" in data:
        changes["cache_dir"] = cache_dir
    return {**data, **changes}
