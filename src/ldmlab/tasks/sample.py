"""Images from a trained run."""

from __future__ import annotations

import hashlib
import json
import re
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
from ldmlab.modules.sampling_modes import Blend, Start, rows_of
from ldmlab.tasks import build, checks, measure
from ldmlab.tasks.console import say, track
from ldmlab.tasks.quality import seed_of, to_device
from ldmlab.tasks.run import read_run
from ldmlab.tasks.told import ASKED, Reader, Told

Config = dict[str, Any]

INTERPOLATED = ("noise", "condition")
LONGEST_NAME = 80  # bytes of a folder's name that say what was told
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


def sample(config: Config) -> Path:
    """Writes n PNGs, each with its making in its metadata, a grid, and what was told; returns their folder.

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
    chosen = {"sampler": sampler_config, "guidance": guidance_config, **build.training_of(description)}
    sampler, guidance = build.build_sampler(chosen, model.objective), build.build_guidance(chosen, model)
    detail, _ = measure.sampling_detail(chosen, description["guidance"])

    conditioner, denoiser = model.network.conditioner, model.network.denoiser
    factor, n = model.autoencoder.downsampling_factor, config["n"]
    told = Reader(config, conditioner, info, factor * denoiser.multiple, n).read()
    blend = blend_of(config, told, device)
    place = Path(config["output"]) if config["output"] else run.samples / f"{folder_name(config)}-{detail}"
    one_file = place.suffix == ".npz"
    try:
        (place.parent if one_file else place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: cannot make {place} ({error.strerror}): choose another place") from error
    making = {
        "run": str(run),
        "model": description["fingerprint"],
        "sampler": sampler_config,
        "guidance": guidance_config,
        **{key: config[key] for key in ("strength", "interpolate") if config[key] is not None},
    }
    size = (told.size[0] // factor, told.size[1] // factor)
    kept: list[Tensor] = []  # all images for one file, those of the grid otherwise
    batch_size = config["batch_size"]
    starts = range(0, n, batch_size)
    for begin in track(starts, len(starts), f"sampling {n} images"):
        rows = range(begin, min(begin + batch_size, n))
        # on the way between two conditions all images have the same noise
        seeds = [seed_of(config["seed"], 0 if config["interpolate"] == "condition" else row) for row in rows]
        way = None if blend is None else blend.rows(rows.start, rows.stop)
        start = None
        if told.image is not None:
            part = slice(rows.start, rows.stop)
            mask = None if told.mask is None else told.mask[part].to(device)
            start = Start(told.image[part].to(device), config["strength"] or 1.0, mask)
        conditions = to_device(rows_of(told.conditions, rows.start, rows.stop), device)
        images = model.sample(conditions, seeds, size, sampler, guidance, start=start, blend=way).images
        drawn = to_uint8(images[:, :, : told.crop[0], : told.crop[1]]).cpu()
        kept += drawn if one_file else drawn[: GRID_IMAGES - len(kept)]
        for row, picture in zip(() if one_file else rows, drawn, strict=False):
            save_png(picture, place / f"{row:05d}.png", {**making, "seed": f"{config['seed']}/{row}", **told.says[row]})
    if one_file:
        pixels = torch.stack(kept).permute(0, 2, 3, 1).numpy()
        # not of images that were told no class, nor of those between two
        labels = told.conditions["label"].numpy() if all("label" in says for says in told.says) else None
        about = json.dumps({**making, "seed": config["seed"], "told": told.says})
        np.savez(place, arr_0=pixels, manifest=np.array(about), **({} if labels is None else {"arr_1": labels}))
        say(f"{n} images in {place}")
        return place
    save_grid(torch.stack(kept) / 127.5 - 1, place / "grid.png", columns=min(8, n))
    for name, pictures in told.inputs.items():
        save_grid(pictures[:GRID_IMAGES], place / f"{name}.png", columns=min(8, n))
    together = "together" if n <= GRID_IMAGES else f"the first {GRID_IMAGES} together"
    beside = f"; what was told in {', '.join(f'{name}.png' for name in told.inputs)}" if told.inputs else ""
    say(f"{n} images in {place}, {together} in {place / 'grid.png'}{beside}")
    return place


def blend_of(config: Config, told: Told, device: torch.device) -> Blend | None:
    """The way between two noises or two conditions, where one is asked for; what is told is then the first of both."""
    asked, n, seed = config["interpolate"], config["n"], config["seed"]
    if asked is None:
        return None
    if asked not in INTERPOLATED:
        raise UserError(f"interpolate: one of {', '.join(INTERPOLATED)} is needed, not {asked}")
    if n < 2:
        raise UserError("interpolate: n=2 or more images are needed for a way from one to another")
    weights = torch.linspace(0, 1, n)
    first, second = told.says[0], told.says[1]
    other = {key: repeated(value, 1, n) for key, value in told.conditions.items()}
    told.conditions = {key: repeated(value, 0, n) for key, value in told.conditions.items()}
    told.image, told.mask = (None if part is None else repeated(part, 0, n) for part in (told.image, told.mask))
    told.inputs = {name: pictures[:2] for name, pictures in told.inputs.items()}
    shown = [round(weight, 4) for weight in weights.tolist()]
    if asked == "noise":
        ends = {"from": f"{seed}/0", "to": f"{seed}/{n - 1}"}
        told.says = [{**first, "seed": {**ends, "weight": weight}} for weight in shown]
        return Blend(weights, seeds=(seed_of(seed, 0), seed_of(seed, n - 1)))
    differing = {key for key in first if first[key] != second[key]}
    if not differing:
        raise UserError("interpolate: between conditions the model has to be told two, label=[A,B] or caption=[A,B]")
    pictures = differing & {"image", "mask", "low_resolution"}
    if pictures:
        raise UserError(f"interpolate: {min(pictures)} has to be the same at both ends of the way")
    told.says = [{"from": first, "to": second, "weight": weight, "seed": f"{seed}/0"} for weight in shown]
    return Blend(weights, conditions=to_device(other, device))


def repeated(values: Any, row: int, n: int) -> Any:
    """One row of a batch's entry, n times."""
    return [values[row]] * n if isinstance(values, list) else values[row : row + 1].repeat_interleave(n, 0)


def folder_name(config: Config) -> str:
    """A name for the images' folder: of what they were told, shortened where it is long, and how they were drawn."""
    told = []
    for name in ASKED:
        if config[name] is not None:
            given = config[name] if isinstance(config[name], list) else [config[name]]
            told += [str(value) if name in ("label", "caption") else Path(str(value)).stem for value in given]
    name = re.sub(r"[^\w.+-]+", "-", "-".join(told)).strip("-.") or ("nothing" if told else "all")
    if len(name.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = name.encode()[:LONGEST_NAME].decode(errors="ignore") + "-" + digest
    size = config["size"] and "size" + "x".join(map(str, np.atleast_1d(config["size"])))
    how = [f"{key}{config[key]}" for key in ("strength", "interpolate") if config[key] is not None]
    return "-".join([name, *how, *([size] if size else []), f"seed{config['seed']}"])


def save_png(image: Tensor, path: Path, making: Config) -> None:
    """An image uint8 (3, H, W) as a PNG that says how it was made."""
    text = PngInfo()
    text.add_itxt("ldmlab", json.dumps(making))
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, pnginfo=text)
