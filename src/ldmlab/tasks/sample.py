"""Images from a trained run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldmlab.callbacks.pictures import save_grid
from ldmlab.errors import UserError
from ldmlab.metrics.extractors import to_uint8
from ldmlab.tasks import build, checks, measure
from ldmlab.tasks.console import say, track
from ldmlab.tasks.run import read_run
from ldmlab.types import Batch

Config = dict[str, Any]

GRID_IMAGES = 64  # a grid of thousands takes longer to write than to draw, and nobody looks at it


def with_overrides(trained: Config, asked: Config, group: str) -> Config:
    """A config of `group`: another one if `asked` names it, else the trained one with what `asked` sets."""
    if asked.get("_target_"):
        return asked
    changes = {key: value for key, value in asked.items() if value is not None}
    unknown = [key for key in changes if key not in trained]
    if unknown:
        target = trained["_target_"].rsplit(".", 1)[-1]
        raise UserError(f"{group}.{unknown[0]}: the run's own {target} has no such setting; choose another {group}=")
    return {**trained, **changes}


def parse_labels(asked: Any, class_names: tuple[str, ...], n: int) -> list[int]:
    """n class numbers from a name, a number, a list of either, or None for all in turn."""
    if asked is None:
        return [i % len(class_names) for i in range(n)]
    labels = []
    for label in asked if isinstance(asked, list) else [asked]:
        if str(label) in class_names:
            labels.append(class_names.index(str(label)))
        elif str(label).isdigit() and int(label) < len(class_names):
            labels.append(int(label))
        else:
            some = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
            raise UserError(f"label: there is no class '{label}'; classes are 0 to {len(class_names) - 1}: {some}")
    return [labels[i % len(labels)] for i in range(n)]


def sample(config: Config) -> Path:
    """Writes n PNGs, each with its making in its metadata, and a grid; returns their folder.

    An `output` that ends in .npz takes all images as one file instead, as ADM's evaluator and `ldmlab score` read it:
    `arr_0` uint8 (n, H, W, 3), and labels in `arr_1`.
    """
    checks.check_measuring(config)
    run = read_run(config["from"], "diffusion", "from")
    model, description = build.load_diffusion(run.path)
    if config["tile"] is not None:
        build.set_tile(model.autoencoder, config["tile"], "tile")
    sampler_config = with_overrides(description["sampler"], config["sampler"], "sampler")
    guidance_config = with_overrides(description["guidance"], config["guidance"], "guidance")
    info = build.info_from_dict(description["data"])
    device = build.best_device()
    model.to(device)
    chosen = {"sampler": sampler_config, "guidance": guidance_config}
    sampler, guidance = build.build_sampler(chosen, model.objective), build.build_guidance(chosen, model)
    detail, _ = measure.sampling_detail(chosen, description["guidance"])

    labels: list[int] | None = None
    name = "samples"
    if info.num_classes and model.network.conditioner.vector_width:
        labels = parse_labels(config["label"], info.class_names, config["n"])
        name = (
            "all" if config["label"] is None else str(config["label"]).strip("[]'").replace(" ", "-").replace("/", "_")
        )
    elif config["label"] is not None:
        raise UserError("label: this model was not trained with class labels")

    place = Path(config["output"]) if config["output"] else run.samples / f"{name}-seed{config['seed']}-{detail}"
    one_file = place.suffix == ".npz"
    try:
        (place.parent if one_file else place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: cannot make {place} ({error.strerror}): choose another place") from error
    size = info.image_size // model.autoencoder.downsampling_factor
    making = {
        "run": str(run),
        "model": description["fingerprint"],
        "sampler": sampler_config,
        "guidance": guidance_config,
    }
    kept: list[Tensor] = []  # all images for one file, those of the grid otherwise
    starts = range(0, config["n"], config["batch_size"])
    for start in track(starts, len(starts), f"sampling {config['n']} images"):
        rows = range(start, min(start + config["batch_size"], config["n"]))
        conditions: Batch = {} if labels is None else {"label": torch.tensor([labels[i] for i in rows], device=device)}
        seeds = [measure.seed_of(config["seed"], row) for row in rows]
        drawn = to_uint8(model.sample(conditions, seeds, size, sampler, guidance).images).cpu()
        kept += drawn if one_file else drawn[: GRID_IMAGES - len(kept)]
        for row, image in zip(() if one_file else rows, drawn, strict=False):
            told = None if labels is None else info.class_names[labels[row]]
            own = {**making, "seed": f"{config['seed']}/{row}", "label": told}
            save_png(image, place / f"{row:05d}.png", own)
    if one_file:
        images = torch.stack(kept).permute(0, 2, 3, 1).numpy()
        arrays = {} if labels is None else {"arr_1": np.array(labels)}
        about = json.dumps({**making, "seed": config["seed"]})
        np.savez(place, arr_0=images, manifest=np.array(about), **arrays)  # type: ignore[arg-type]
        say(f"{config['n']} images in {place}")
        return place
    save_grid(torch.stack(kept) / 127.5 - 1, place / "grid.png", columns=min(8, config["n"]))
    together = "together" if config["n"] <= GRID_IMAGES else f"the first {GRID_IMAGES} together"
    say(f"{config['n']} images in {place}, {together} in {place / 'grid.png'}")
    return place


def save_png(image: Tensor, path: Path, making: Config) -> None:
    """An image uint8 (3, H, W) as a PNG that says how it was made."""
    text = PngInfo()
    text.add_itxt("ldmlab", json.dumps(making))
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, pnginfo=text)
