"""What a run would take, before it is started: memory, operations, hours on named GPUs, and how to lay it out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torchvision
from torch import Tensor, nn

from ldmlab.autoencoders.adversarial import hinge_loss
from ldmlab.callbacks.budget import Budget, Limits
from ldmlab.conditioners.base import Conditioner, Conditioners
from ldmlab.conditioners.super_resolution import SuperResolution
from ldmlab.diffusion.guidance import Guidance
from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.samplers import Sampler
from ldmlab.diffusion.schedules import Schedule
from ldmlab.metrics.footprint import Footprint, footprint, weightless
from ldmlab.metrics.speed import count_flops, device_name, time_repeats
from ldmlab.modules.model import LatentDiffusion
from ldmlab.optimizers.groups import parameter_groups
from ldmlab.tasks import build
from ldmlab.tasks.console import say, say_table
from ldmlab.tasks.layouts import Device, Layout, layouts
from ldmlab.tasks.run import stand_on_trained, write_text
from ldmlab.types import Batch, Conditioning, DataInfo, LatentInfo

Config = dict[str, Any]

BACKBONES = {"vgg": "vgg16", "alex": "alexnet", "squeeze": "squeezenet1_1"}  # of LPIPS
PRECISIONS = {"32": "fp32", "bf16": "bf16", "16": "fp16"}
IMAGES = 2  # in the batch whose footprint is taken


@dataclass(frozen=True)
class Stage:
    """A stage of training, with what it needs.

    Attributes:
        batch: images to a step of the optimiser.
        images: that the budget allows, None if it counts time alone.
        time: limits of time beside that, in words.
        sampling_flops: of drawing one image, 0 where nothing is drawn.
    """

    name: str
    need: Footprint
    batch: int
    images: float | None
    time: str
    sampling_flops: float = 0.0


def plan(config: Config) -> list[dict[str, Any]]:
    """Prints what both stages of a run need, and what they take on every device; returns it as records."""
    settings = config["plan"]
    stand_on_trained(config)
    info = assumed_data(config)
    half = not str(config["trainer"]["lightning"]["precision"]).startswith("32")
    with weightless():
        stages = list(_stages(config, info, half))
    devices = [*gpus(config), *([this_machine(config)] if settings["here"] else [])]
    records = [record for stage in stages for record in _report(stage, devices, settings["devices"])]
    if settings["output"] is not None:
        write_text(Path(settings["output"]), json.dumps(records, indent=1))
    return records


def assumed_data(config: Config) -> DataInfo:
    """A data set of the size and kinds that the settings say, of which nothing is read."""
    assumed = config["plan"]["assumed"]

    def names(count: int) -> tuple[str, ...]:
        return tuple(str(number) for number in range(count))

    return DataInfo(
        name=str(config["data"].get("name", "data")),
        image_size=config["data"]["image_size"],
        fingerprint="",
        class_names=names(assumed["classes"]),
        semantic_classes=names(assumed["semantic_classes"]),
        box_classes=names(assumed["box_classes"]),
        has_captions=True,
    )


def _stages(config: Config, info: DataInfo, half: bool) -> Iterator[Stage]:
    what, trains = config["plan"]["stage"], config["autoencoder"].get("optimizer") is not None
    limits = Limits(**config["budget"])
    if config["downsampling"]["factor"] == 1:
        config = {**config, "autoencoder": build.IDENTITY}
        trains = False
    trains = trains and config["autoencoder_from"] is None
    autoencoder = build.build_autoencoder(config)
    if what != "diffusion" and trains:
        share = limits if what == "autoencoder" else limits.share(config["autoencoder_share"])
        yield _autoencoder_stage(config, autoencoder, info, share, half)
    if what != "autoencoder":
        if trains:
            left = limits.share(1 - config["autoencoder_share"])
            limits = replace(left, steps=limits.steps, images=limits.images)
        yield _diffusion_stage(config, autoencoder, info, limits, half)


def _autoencoder_stage(config: Config, autoencoder: Any, info: DataInfo, limits: Limits, half: bool) -> Stage:
    alone = {**config["autoencoder"], "perceptual": None, "adversarial": None, "equivariance": None}
    module = build.build_autoencoder_module({**config, "autoencoder": alone}, autoencoder, Budget(limits, 0, False))
    module.eval()  # a codebook follows what it sees only in training
    batch = {"image": torch.zeros(IMAGES, 3, info.image_size, info.image_size)}
    need = footprint(
        [autoencoder], autoencoder, lambda: module.loss(batch), IMAGES, module.configure_optimizers, half=half
    )
    for judge in _judges(config, info.image_size, half):
        need += judge
    return _stage("autoencoder", config, need, config["autoencoder"]["batch_size"], limits)


def _judges(config: Config, size: int, half: bool) -> Iterator[Footprint]:
    """What passing a reconstruction through the networks takes that look at it."""
    perceptual, adversarial = config["autoencoder"]["perceptual"], config["autoencoder"]["adversarial"]
    if perceptual is not None:
        yield _perceptual(perceptual, size, half)
    if adversarial is not None:
        adversary = build.build(adversarial, "autoencoder.adversarial")
        network = adversary.discriminator
        images, made = _pair(size)
        yield footprint(
            [network],
            network,
            lambda: hinge_loss(network(images), network(made)) - network(made).mean(),
            1,
            lambda: adversary.optimizer(parameter_groups(network)),
            half=half,
        )


def _perceptual(settings: Config, size: int, half: bool) -> Footprint:
    if settings.get("network") in BACKBONES:
        # LPIPS, whose weights would have to be downloaded
        network = torchvision.models.get_model(BACKBONES[settings["network"]], weights=None).features
        images, made = _pair(size)
        return footprint(
            [network], nn.ModuleList(), lambda: (network(made) - network(images)).square().mean(), 1, list, half=half
        )
    with torch.device("cpu"):
        # small, and its weights come from a file
        judge = build.build(settings, "autoencoder.perceptual")
        images, made = _pair(size)
        return footprint([judge.network], nn.ModuleList(), lambda: judge(made, images), 1, list, half=half)


def _pair(size: int) -> tuple[Tensor, Tensor]:
    """An image, and a reconstruction that has a gradient."""
    return torch.zeros(1, 3, size, size), torch.zeros(1, 3, size, size, requires_grad=True)


def _diffusion_stage(config: Config, autoencoder: Any, info: DataInfo, limits: Limits, half: bool) -> Stage:
    size = info.image_size // autoencoder.downsampling_factor
    shape = (IMAGES, autoencoder.latent_channels, size, size)
    latents = LatentInfo(autoencoder.downsampling_factor, autoencoder.latent_channels)
    network = build.build_network({**config, "conditioner": _without_encoders(config["conditioner"])}, info, latents)
    with torch.device("cpu"):
        # of a few numbers, which are looked at
        objective = build.build_objective(config, autoencoder.latent_channels * size**2)
    model = LatentDiffusion(autoencoder, network, objective).train()
    moments = {"latent_mean": torch.zeros(shape), "latent_std": torch.ones(shape)}
    told = _told(network.conditioner, info, config["plan"]["assumed"]["caption_tokens"])
    halfway = torch.full((IMAGES,), 0.5)

    def loss() -> Tensor:
        alpha, sigma = model.objective.schedule.coefficients(halfway)
        conditioning = model.condition(network, told)
        return (
            model.output(network, model.draw_latents(moments), halfway, alpha, sigma, conditioning)[0].square().mean()
        )

    optimizer = build.build(config["optimizer"], "optimizer")
    need = footprint([model], network, loss, IMAGES, lambda: optimizer(parameter_groups(network)), copies=1, half=half)
    guidance = build.build_guidance(config, model, autoencoder_trained=False)
    with torch.device("cpu"):
        passes = passes_of(build.build_sampler(config, objective), guidance, objective.schedule)
    with torch.no_grad():
        once = count_flops(loss) / IMAGES
        decoding = count_flops(lambda: autoencoder.decode(torch.zeros(shape))) / IMAGES
    stage = _stage("diffusion", config, need, config["batch_size"], limits)
    return replace(stage, sampling_flops=passes * once + decoding)


def _stage(name: str, config: Config, need: Footprint, batch_size: int, limits: Limits) -> Stage:
    batch = batch_size * (config["trainer"]["lightning"].get("accumulate_grad_batches") or 1)
    allowed = {"steps": (limits.steps, batch), "images": (limits.images, 1), "flops": (limits.flops, 1 / need.flops)}
    images = [limit * each for limit, each in allowed.values() if limit is not None]
    times = {"seconds": limits.seconds, "cpu_seconds": limits.cpu_seconds}
    time = " or ".join(f"budget.{name}={limit:.0f}" for name, limit in times.items() if limit is not None)
    return Stage(name, need, batch, min(images, default=None), time)


class ReadBefore(Conditioner):
    """Stands for a frozen text encoder: captions are read once, before training, and only a projection is trained."""

    def __init__(self, data: DataInfo, latents: LatentInfo, width: int, length: int, states: int = 768):
        super().__init__()
        self.token_width, self.length, self.states = width, length, states
        self.project = nn.Sequential(nn.LayerNorm(states), nn.Linear(states, width))

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Conditioning:
        """Tokens (B, length, width) of B captions."""
        return Conditioning(tokens=self.project(torch.zeros(len(batch["caption"]), self.length, self.states)))

    def nothing(self, count: int, size: tuple[int, int]) -> Batch:
        """Empty captions."""
        return {"caption": [""] * count}


def _without_encoders(conditioners: Config) -> Config:
    target = f"{ReadBefore.__module__}.{ReadBefore.__name__}"
    return {
        name: {"_target_": target, "width": part["width"], "length": part["length"]} if "encoder" in part else part
        for name, part in conditioners.items()
    }


def _told(conditioner: Conditioners, info: DataInfo, caption_tokens: int) -> Batch:
    """Something to tell a model about a batch; what it is does not matter, but the length of captions does."""
    told: Batch = {}
    for part in conditioner.named_parts.values():
        told |= part.nothing(IMAGES, (info.image_size, info.image_size)) or {}
        if isinstance(part, SuperResolution):
            side = info.image_size // part.factor
            told["low_resolution"] = torch.zeros(IMAGES, 3, side, side)
    if "caption" in told:
        told["caption"] = ["x" * (caption_tokens - 2)] * IMAGES  # bytes, between a start and a blank
    return told


class Passes:
    """Stands for a model under guidance, and counts what it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def conditional(self, xt: Tensor, t: Tensor) -> Prediction:
        """One pass."""
        self.count += 1
        return Prediction(x0=xt, noise=xt, variance=xt)

    def both(self, xt: Tensor, t: Tensor, batched: bool) -> tuple[Prediction, Prediction]:
        """Two passes."""
        return self.conditional(xt, t), self.conditional(xt, t)

    def without(self, names: frozenset[str], xt: Tensor, t: Tensor) -> Prediction:
        """One pass."""
        return self.conditional(xt, t)

    def weaker(self, guide: Any, xt: Tensor, t: Tensor) -> Prediction:
        """One pass, counted as if the guide were as large."""
        return self.conditional(xt, t)

    def with_x0(self, x0: Tensor, xt: Tensor, t: Tensor) -> Prediction:
        """None."""
        return Prediction(x0=x0, noise=x0)


def passes_of(sampler: Sampler, guidance: Guidance, schedule: Schedule) -> int:
    """How often an image passes through the network while it is sampled."""
    model = Passes()
    noise = torch.zeros(1, 2, 1, 1)  # two values, which have a spread
    sampler(lambda xt, t: guidance(model, xt, t), noise, schedule, torch.randn_like)
    return model.count


def gpus(config: Config) -> list[Device]:
    """The GPUs that the settings name, as fast as the run's precision and the stated utilisation make them."""
    settings = config["plan"]
    precision = str(config["trainer"]["lightning"]["precision"])
    wanted = next(name for start, name in PRECISIONS.items() if precision.startswith(start))
    devices = []
    for name, gpu in settings["gpus"].items():
        # cuDNN computes convolutions of float32 in TF32 where there is any
        ways = {"fp32": ("tf32", "fp32"), "bf16": ("bf16", "fp32"), "fp16": ("fp16", "fp32")}[wanted]
        way = next(way for way in ways if way in gpu)
        flops = 1e12 * gpu[way] * settings["utilisation"][way]
        devices.append(Device(name, flops, 1e9 * gpu["memory"] * settings["memory_share"], 1e9 * gpu["link"], way))
    return devices


def this_machine(config: Config) -> Device:
    """This machine's one GPU or its processor, with the speed that the run's threads have on a matrix product."""
    settings = config["plan"]
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    device = build.best_device()
    side = 2048 if device.type == "cpu" else 8192
    matrix = torch.randn(side, side, device=device)
    started = time.process_time()
    repeats = time_repeats(lambda: matrix @ matrix, 5, device, warmups=0)
    seconds = median(repeats)
    if device.type == "cpu":
        # whatever else this machine is doing
        seconds = (time.process_time() - started) / len(repeats) / torch.get_num_threads()
    flops = 2 * side**3 / seconds * settings["utilisation"]["here"]
    memory = psutil.virtual_memory().total if device.type == "cpu" else torch.cuda.mem_get_info()[1]
    return Device(f"here ({device_name(device)})", flops, memory * settings["memory_share"], 1e9, "measured")


def _report(stage: Stage, devices: list[Device], most: int) -> list[dict[str, Any]]:
    """Prints what a stage takes, and gives it as records, one for each layout."""
    need = stage.need
    drawing = f", {scaled(stage.sampling_flops, 'FLOP')} to draw one" if stage.sampling_flops else ""
    trained = f"{scaled(need.parameters, '')} parameters, {scaled(need.flops, 'FLOP')} to train on an image"
    say(f"{stage.name}: {trained}{drawing}")
    say(
        f"memory: {scaled(need.weights, 'B')} weights with averages, {scaled(need.gradients, 'B')} gradients, "
        f"{scaled(need.optimizer, 'B')} optimiser, {scaled(need.activations, 'B')} for each image at once"
    )
    counted = [] if stage.images is None else [f"{stage.images:,.0f} images"]
    budget = ", or until ".join([*counted, *([stage.time] if stage.time else [])]) or "without end"
    say(f"training: {budget}, {stage.batch} images to a step")
    rows, records = [], []
    for device in devices:
        found = list(layouts(need, stage.batch, device, 1 if device.name.startswith("here") else most))
        cheapest = min(found, key=lambda layout: layout.devices * layout.seconds, default=None)
        if cheapest is None:
            rows.append([device.name, "does not fit", *[""] * 5])
        for layout in found:
            record = _record(stage, device, layout)
            records.append(record)
            if layout is not cheapest and layout is not found[-1]:
                continue
            mark = " *" if layout is cheapest else ""
            rows.append(
                [
                    f"{layout.devices} x {device.name}",
                    f"{layout.strategy} {layout.micro_batch} x {layout.accumulate}{mark}",
                    scaled(layout.memory, "B"),
                    rate(record["images_per_s"]),
                    duration(record["hours"]),
                    duration(record["device_hours"]),
                    rate(record["sampled_images_per_s"]),
                ]
            )
    drawn = "draws images/s" if stage.sampling_flops else ""
    say_table(["devices", "layout", "memory", "images/s", "time", "devices' time", drawn], rows)
    say("* the cheapest that fits; a layout is images at once on a device x batches to a step")
    return records


def _record(stage: Stage, device: Device, layout: Layout) -> dict[str, Any]:
    hours = None if stage.images is None else stage.images / stage.batch * layout.seconds / 3600
    return {
        "stage": stage.name,
        "device": device.name,
        "computes_in": device.precision,
        "flops_per_s": device.flops,
        **asdict(layout),
        "images": stage.images,
        "images_per_s": stage.batch / layout.seconds,
        "hours": hours,
        "device_hours": None if hours is None else hours * layout.devices,
        "sampled_images_per_s": device.flops / stage.sampling_flops if stage.sampling_flops else None,
        "footprint": asdict(stage.need),
    }


def scaled(count: float, unit: str) -> str:
    """A count in units of a thousand, a million and so on."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            shown = count / factor
            return f"{shown:.3g} {prefix}{unit}" if shown < 100 else f"{shown:,.0f} {prefix}{unit}"
    return f"{count:,.0f} {unit}".rstrip()


def rate(images_per_s: float | None) -> str:
    """Images a second."""
    if images_per_s is None:
        return ""
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.3g}"


def duration(hours: float | None) -> str:
    """Hours as minutes, hours or days."""
    if hours is None:
        return "-"
    if hours < 1:
        return f"{60 * hours:,.1f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} days"
