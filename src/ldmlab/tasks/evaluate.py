"""Quality and speed of a trained run with another sampler, number of steps or guidance."""

from __future__ import annotations

from typing import Any

from ldmlab.errors import UserError
from ldmlab.tasks import build, checks, measure, training
from ldmlab.tasks.console import say, track
from ldmlab.tasks.run import read_run
from ldmlab.tasks.sample import with_overrides

Config = dict[str, Any]


def evaluate(config: Config) -> Config:
    """Measures a run again and adds the values to its summary; returns the summary of this evaluation alone.

    What is not asked for is as in the run: sampler, guidance, number of samples, features. Values measured before under
    the same name are replaced, those of other settings have other names.
    """
    checks.check_measuring(config)
    run = read_run(config["from"], "diffusion", "from")
    model, description = build.load_diffusion(run.path)
    merged = {
        **run.config,
        "metrics": with_run_s_metrics(run.config["metrics"], config["metrics"]),
        "sampler": with_overrides(description["sampler"], config["sampler"]),
        "guidance": with_overrides(description["guidance"], config["guidance"]),
        "data": moved(run.config["data"], config["data_path"], config["cache_dir"]),
        "cache_dir": config["cache_dir"] or run.config["cache_dir"],
    }
    training.set_up(merged, merged["seed"])
    data = build.build_data(merged)
    if data.info.fingerprint != description["data"]["fingerprint"]:
        raise UserError(
            f"from: the data of {run} has changed since it was trained; its numbers would not be comparable"
        )
    device = training.device_of(merged)
    model.to(device)
    quality = measure.quality_of(merged, data, device)
    sampler, guidance = build.build_sampler(merged), build.build_guidance(merged)
    detail, manifest = measure.sampling_detail(merged, description["guidance"])
    same_reference = all(
        merged["metrics"][key] == run.config["metrics"][key] for key in ("samples", "reference_split", "seed")
    )
    suffix = "" if same_reference else f"-n{quality.samples}-seed{merged['metrics']['seed']}"
    detail += suffix
    metrics = measure.measure_generation(
        model, model.network, quality, sampler, guidance, manifest, detail, track,
        merged["metrics"]["sampling_batch"], merged["metrics"]["latency_repeats"], merged["metrics"]["seed"],
    )  # fmt: skip
    floors = measure.measure_real(quality, track, suffix)
    if not floors.keys() <= (run.summary or {})["metrics"].keys():
        # other features or other images than the run's own have floors of their own
        metrics |= floors
        if model.autoencoder.downsampling_factor > 1:
            metrics |= measure.measure_reconstruction_distances(model.autoencoder, quality, track, suffix)
    with run.lock(say):
        summary = run.summary or {}
        summary["metrics"] |= metrics
        run.finish(summary)
    speed = metrics[f"speed/images_per_s@{detail}"]["value"]
    say(f"{run}: {measure.headline(metrics | floors, detail, suffix)}, {speed:.1f} images/s")
    return {"metrics": metrics}


def with_run_s_metrics(trained: Config, asked: Config) -> Config:
    """The run's metrics config with what is asked for in place of its own."""
    features = with_overrides(trained["features"], asked["features"])
    changes = {key: value for key, value in asked.items() if value is not None and key != "features"}
    return {**trained, **changes, "features": features}


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
