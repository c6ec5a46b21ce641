"""What a run is measured with, written down so that it can be measured again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldmlab import processes
from ldmlab.metrics.fidelity import Judge
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion
from ldmlab.tasks import build, measure
from ldmlab.tasks.measure_speed import measure_speed
from ldmlab.tasks.quality import Metrics, Quality

Config = dict[str, Any]


def recipe_of(config: Config) -> Config:
    """The settings that a run measures itself with, beside model and data; the metrics' names then have no suffix."""
    keys = ("metrics", "sampler", "guidance")
    return {**{key: config[key] for key in keys if key in config}, "suffix": ""}


def recipe_key(quality: Quality, detail: str) -> str:
    """What a recipe is kept under: all values of one have it in common, and no two recipes share it."""
    return f"{quality.prefix}/{quality.extractor.name}@{detail}"


def keep_recipe(summary: Config, key: str, recipe: Config) -> None:
    """Adds a recipe to a summary. One that measures less than the last under its key leaves nothing unexplained."""
    before = summary["measured"].get(key)
    if before is not None:
        distances = dict.fromkeys([*before["metrics"]["distances"], *recipe["metrics"]["distances"]])
        judges = {name: recipe["metrics"][name] or before["metrics"][name] for name in ("lpips", "clip_score")}
        recipe = {**recipe, "metrics": {**recipe["metrics"], **judges, "distances": list(distances)}}
    summary["measured"][key] = recipe


def measure_diffusion(
    model: LatentDiffusion,
    network: ConditionalDenoiser,
    quality: Quality,
    recipe: Config,
    description: Config,
    detail: str,
    judges: Sequence[Judge],
) -> Metrics:
    """Quality, fidelity to what was told, and speed where it is asked for, of one setting of sampler and guidance."""
    settings = recipe["metrics"]
    sampler, guidance = build.build_sampler(recipe, model.objective), build.build_guidance(recipe, model)
    guide = recipe["guidance"].get("guide")
    if guide is not None:
        description = {**description, "guide": build.fingerprint_of(guide)}
    metrics = measure.measure_generation(
        model, network, quality, sampler, guidance, description, detail,
        settings["sampling_batch"], settings["seed"], judges,
    )  # fmt: skip
    # one process alone, while the others wait: the speed of one device, not of several that share a machine
    if settings["speed_repeats"] and processes.rank() == 0:
        metrics |= measure_speed(
            model, network, quality, sampler, guidance, description, detail,
            settings["speed_repeats"], settings["speed_batch"], settings["seed"],
        )  # fmt: skip
    processes.wait()
    return metrics
