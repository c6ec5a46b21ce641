"""Quality and speed of a trained run with another sampler, number of steps or guidance."""

from __future__ import annotations

from typing import Any

from ldmlab.errors import UserError
from ldmlab.tasks import build, measure, training
from ldmlab.tasks.console import say, track
from ldmlab.tasks.run import read_run
from ldmlab.tasks.sample import with_overrides

Config = dict[str, Any]


def evaluate(config: Config) -> Config:
    """Measures a run again and adds the values to its summary; returns the summary of this evaluation alone."""
    run = read_run(config["from"], "diffusion", "from")
    model, description = build.load_diffusion(run.path)
    merged = {
        **run.config,
        "metrics": config["metrics"],
        "sampler": with_overrides(description["sampler"], config["sampler"]),
        "guidance": with_overrides(description["guidance"], config["guidance"]),
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
    detail, manifest = measure.sampling_detail(merged)
    if merged["guidance"] != description["guidance"]:
        detail += "-" + "".join(str(value) for key, value in manifest["guidance"].items() if key == "scale") + "cfg"
    metrics = measure.measure_real(quality, track)
    metrics |= measure.measure_generation(
        model, model.network, quality, sampler, guidance, manifest, detail, track,
        merged["metrics"]["sampling_batch"], merged["metrics"]["latency_repeats"], merged["metrics"]["seed"],
    )  # fmt: skip
    with run.lock(say):
        summary = run.summary or {}
        summary["metrics"] |= {name: metric for name, metric in metrics.items() if not name.endswith("@real")}
        run.finish(summary)
    speed = metrics.get(f"speed/images_per_s@{detail}")
    said = f", {speed['value']:.1f} images/s" if speed else ""
    say(f"{run}: {measure.headline(metrics, detail)}{said}")
    return {"metrics": metrics}
