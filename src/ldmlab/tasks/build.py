"""From configuration to objects: the one place where networks and algorithms are instantiated."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ldmlab.autoencoders.base import Autoencoder
from ldmlab.autoencoders.convolutional import ConvolutionalAutoencoder
from ldmlab.callbacks.budget import Budget
from ldmlab.conditioners.base import Conditioners
from ldmlab.diffusion.guidance import ClassifierFree, Composition, Guidance
from ldmlab.diffusion.samplers import Sampler
from ldmlab.errors import UserError
from ldmlab.modules.autoencoder import AdversarialAutoencoderModule, AutoencoderModule, ReconstructionLoss
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion, Objective
from ldmlab.settings import SettingError
from ldmlab.tasks.run import read_run
from ldmlab.types import DataInfo, ImageData, LatentInfo

Config = dict[str, Any]
Result = TypeVar("Result")

IDENTITY: Config = {"network": {"_target_": "ldmlab.autoencoders.identity.IdentityAutoencoder"}}
"""The settings of the autoencoder at f1."""


def build(config: Config, option: str, **arguments: Any) -> Any:
    """The object that a `_target_` config describes; what is wrong with it ends in a UserError that names `option`."""
    try:
        # plain lists, as settings end in checkpoints; what a run adds is passed by hand, as Hydra would turn a
        # dataclass among it into a config
        if arguments:
            return instantiate(config, _partial_=True, _convert_="all")(**arguments)
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        inner = re.search(r"^full_key: (\S+)", str(error), re.MULTILINE)
        raise named(f"{option}.{inner[1]}" if inner else option, cause) from error
    except WRONG_SETTINGS as error:
        raise named(option, error) from error


WRONG_SETTINGS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What objects raise whose settings cannot be."""


def named(option: str, error: BaseException) -> UserError:
    """The error in one line that names `option`, and the setting of it that the error is about."""
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{option}.{message}" if isinstance(error, SettingError) else f"{option}: {message}")


def try_out(option: str, action: Callable[[], Result]) -> Result:
    """Runs `action`, a small part of what the run will do; what fails ends in a UserError that names `option`.

    The random numbers that it draws are drawn again by the run.
    """
    try:
        with torch.random.fork_rng():
            return action()
    except (*WRONG_SETTINGS, RuntimeError) as error:
        raise named(option, error) from error


def best_device(accelerator: str = "auto") -> torch.device:
    """The device that `accelerator` stands for: a GPU where there is one that works, unless it is "cpu"."""
    # asked first: a build with CUDA names its accelerator even where no driver is installed
    if accelerator == "cpu" or not torch.accelerator.is_available():
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    # Apple's GPUs have no float64, in which schedules and latent statistics are computed
    return torch.device("cpu") if device.type == "mps" else device


def build_data(config: Config) -> ImageData:
    """The data set of a run."""
    return build(config["data"], "data")


def build_sampler(config: Config, objective: Objective) -> Sampler:
    """The sampler of a run, for a model trained as `objective` says.

    Raises:
        UserError: it cannot be built, or cannot serve such a model.
    """
    sampler = _sampler(config["sampler"])
    problem = sampler.problem_with(objective.schedule, objective.learned_variance)
    if problem:
        raise UserError(problem)
    try:
        end = sampler.points(objective.schedule)[-1]
    except WRONG_SETTINGS as error:
        raise named("sampler.grid", error) from error
    if end.sigma > 0:
        raise UserError(f"sampler.grid: {sampler.grid} ends at t = {end.t:.3g}, where noise is left; 0 is needed")
    return sampler


def _sampler(config: Config) -> Sampler:
    sampler = build(config, "sampler")
    if not isinstance(sampler, Sampler):
        raise UserError(f"sampler._target_: {config['_target_']} is no sampler")
    return sampler


def steps_for(sampler: Config, evaluations: int) -> int:
    """The most steps for which a sampler asks the network no more than so many times."""
    return _sampler(sampler).steps_for(evaluations)


def build_guidance(
    config: Config, model: LatentDiffusion, autoencoder_trained: bool = True, device: torch.device | None = None
) -> Guidance:
    """The guidance of a run, with the guide that it names, on `device` or where the model is.

    While the model's autoencoder is not trained yet, nothing can be said of whether the guide has the same.

    Raises:
        UserError: it cannot be built, or there is nothing to guide with: each step would pay for two equal evaluations.
    """
    settings = config["guidance"]
    path = settings.get("guide")
    if path is None:
        guidance = build(settings, "guidance")
    else:
        others = {key: value for key, value in settings.items() if key != "guide"}
        guide = load_guide(Path(str(path)), model, autoencoder_trained)
        guidance = build(others, "guidance", guide=guide.to(device or next(model.parameters()).device))
    told = model.network.conditioner.named_parts
    if isinstance(guidance, Composition):
        unknown = [name for name in guidance.scales if name not in told]
        if unknown:
            has = f"its conditioners are {', '.join(told)}" if told else "it has none"
            raise UserError(f"guidance.scales.{unknown[0]}: the model has no such conditioner; {has}")
        if len(told) > 1 and config.get("drop_each_probability") == 0:
            raise UserError(
                "guidance: composition asks about some conditions without the others, which this model was not trained "
                "for: drop_each_probability above 0 does that"
            )
    if isinstance(guidance, ClassifierFree) and not told:
        raise UserError(
            "guidance: an unconditional model has nothing to be guided by; use guidance=none, or guidance=autoguidance "
            "with a weaker run"
        )
    return guidance


def load_guide(run: Path, model: LatentDiffusion, autoencoder_trained: bool = True) -> LatentDiffusion:
    """The weaker model of a run.

    Raises:
        UserError: it is no run, or lives in other latents, on another path or under other conditions.
    """
    guide, _ = load_diffusion(read_run(run, "diffusion", "guidance.guide").path, "guidance.guide")
    own, other = model.autoencoder.state_dict(), guide.autoencoder.state_dict()
    same = own.keys() == other.keys() and all(own[key].shape == other[key].shape for key in own)
    if same and autoencoder_trained:
        same = all(torch.equal(own[key].cpu(), other[key]) for key in own)
    if not same:
        raise UserError(f"guidance.guide: {run} has another autoencoder; a guide needs the same latents")
    if guide.objective.schedule != model.objective.schedule:
        raise UserError(f"guidance.guide: {run} was trained on another path; a guide needs the same scheduler.schedule")
    told, guide_told = model.network.conditioner.named_parts, guide.network.conditioner.named_parts
    if any(name not in told or language_of(told[name]) != language_of(part) for name, part in guide_told.items()):
        raise UserError(f"guidance.guide: {run} was trained under other conditions")
    return guide


def language_of(conditioner: Any) -> tuple[Any, ...]:
    """What two conditioners have in common that can be told the same: all but the width of their layers."""
    position = getattr(conditioner, "position", None)
    factors = [getattr(conditioner, name, None) for name in ("factor", "latent_factor")]
    places = None if position is None else len(position)
    return type(conditioner), conditioner.classes, conditioner.told, *factors, places


def training_of(description: Config) -> Config:
    """What model.yaml says of training that decides how a model can be sampled."""
    return {key: description[key] for key in ("drop_each_probability",) if key in description}


def build_autoencoder(config: Config) -> Autoencoder:
    """The autoencoder of a run, untrained unless it is a pretrained one."""
    return _autoencoder(config["autoencoder"]["network"], config["autoencoder"].get("tile"))


def _autoencoder(settings: Config, tile: int | None, trained_against: Sequence[str] = ()) -> Autoencoder:
    autoencoder = build(settings, "autoencoder.network")
    if not isinstance(autoencoder, Autoencoder):
        raise UserError(f"autoencoder.network._target_: {settings.get('_target_')} is no autoencoder")
    autoencoder.settings = autoencoder.settings or settings
    autoencoder.trained_against = tuple(trained_against)
    set_tile(autoencoder, tile, "autoencoder.tile")
    return autoencoder


def set_tile(autoencoder: Autoencoder, tile: int | None, option: str) -> None:
    """Has larger images go through an autoencoder in tiles; `option` names the setting in a UserError."""
    try:
        autoencoder.tile(tile)
    except SettingError as error:
        raise UserError(str(error).replace("tile", option, 1)) from error


def description_of(autoencoder: Autoencoder) -> Config:
    """What model.yaml says of an autoencoder, from which it is built again."""
    return {
        "autoencoder": autoencoder.settings,
        "tile": autoencoder.tiles and autoencoder.tiles.size * autoencoder.downsampling_factor,
        "trained_against": list(autoencoder.trained_against),
    }


def _described(description: Config) -> Autoencoder:
    return _autoencoder(description["autoencoder"], description.get("tile"), description.get("trained_against", ()))


def build_autoencoder_module(config: Config, autoencoder: Autoencoder, budget: Budget) -> AutoencoderModule:
    """What trains an autoencoder, to the settings of a run."""
    settings = config["autoencoder"]
    if not isinstance(autoencoder, ConvolutionalAutoencoder):
        raise UserError(f"autoencoder.network._target_: {settings['network']['_target_']} cannot be trained")
    optimizer = build(settings["optimizer"], "autoencoder.optimizer")
    perceptual, adversary, equivariance = (
        None if settings[part] is None else build(settings[part], f"autoencoder.{part}")
        for part in ("perceptual", "adversarial", "equivariance")
    )
    try:
        reconstruction = ReconstructionLoss(settings["pixel_loss"], perceptual)
    except WRONG_SETTINGS as error:
        raise named("autoencoder", error) from error
    if adversary is None:
        return AutoencoderModule(autoencoder, optimizer, reconstruction, equivariance)
    lightning = config["trainer"]["lightning"]
    return AdversarialAutoencoderModule(
        autoencoder,
        optimizer,
        reconstruction,
        equivariance,
        adversary,
        used=lambda: budget.used,
        accumulate=lightning.get("accumulate_grad_batches", 1),
        clip=lightning.get("gradient_clip_val"),
    )


def build_conditioner(config: Config, info: DataInfo, latents: LatentInfo) -> Conditioners:
    """What a model is told: the conditioners of a run, untrained, by their names in `config`."""
    if "_target_" in config:
        raise UserError("conditioner: this model was made by an older version of ldmlab; train it anew")
    parts = {name: build(part, f"conditioner.{name}", data=info, latents=latents) for name, part in config.items()}
    return Conditioners(parts)


def conditioners_for_others(config: Config) -> Config:
    """The settings of conditioners as a model's folder keeps them: without this machine's caches."""
    return {name: {**part, **({"cache": None} if "cache" in part else {})} for name, part in config.items()}


def build_network(config: Config, info: DataInfo, latents: LatentInfo) -> ConditionalDenoiser:
    """An untrained denoiser and its conditioners, for data described by `info`."""
    conditioner = build_conditioner(config["conditioner"], info, latents)
    sizes = {
        "in_channels": latents.channels,
        "condition_width": conditioner.vector_width,
        "token_width": conditioner.token_width,
        "spatial_channels": conditioner.spatial_channels,
    }
    if config["scheduler"].get("learned_variance"):
        sizes["out_channels"] = 2 * latents.channels
    return ConditionalDenoiser(build(config["denoiser"], "denoiser", **sizes), conditioner)


def build_model(config: Config, info: DataInfo, autoencoder: Autoencoder) -> LatentDiffusion:
    """An untrained diffusion model on a given autoencoder, for data described by `info`."""
    size = info.image_size // autoencoder.downsampling_factor
    objective = build_objective(config, autoencoder.latent_channels * size**2)
    latents = LatentInfo(autoencoder.downsampling_factor, autoencoder.latent_channels)
    return LatentDiffusion(autoencoder, build_network(config, info, latents), objective)


def build_objective(config: Config, dimension: int) -> Objective:
    """Path, prediction, times and weighting, for latents of `dimension` values."""
    # the path first: others take their number of steps from it
    choices = {"schedule": config["scheduler"].get("schedule"), **config["scheduler"]}
    parts = {
        name: build(part, f"scheduler.{name}") if isinstance(part, dict) else part for name, part in choices.items()
    }
    try:
        return Objective.from_names(dimension, **parts)
    except WRONG_SETTINGS as error:
        raise named("scheduler", error) from error


def check_conditioner(config: Config, info: DataInfo) -> None:
    """Raises UserError if the data lacks what the conditioner tells."""
    for name, part in config["conditioner"].items():
        if not isinstance(part, dict) or "_target_" not in part:
            raise UserError(f"conditioner.{name}: a conditioner with a _target_ is needed; choose conditioner=...")
        conditioner: Any = get_class(part["_target_"])
        problem = conditioner.problem_with(info)
        if problem:
            raise UserError(f"conditioner={name}: {problem}; use conditioner=none or other data")


def save_model(module: torch.nn.Module, folder: Path, description: Config) -> str:
    """Writes model.safetensors and model.yaml, from which `load_*` build the module again; returns the fingerprint."""
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    temporary = folder / ".model.safetensors"
    try:
        save_file(weights, temporary)
    except SafetensorError as error:  # in which a full disk is told as a text
        temporary.unlink(missing_ok=True)
        told = f"cannot write {folder / 'model.safetensors'} ({str(error).splitlines()[0]})"
        raise UserError(f"{told}: free some space and start the same command again") from error
    temporary.replace(folder / "model.safetensors")
    fingerprint = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    text = yaml.safe_dump({"fingerprint": fingerprint, **description}, sort_keys=False)
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    return fingerprint


def _load(run: Path, option: str) -> tuple[Config, dict[str, torch.Tensor]]:
    weights, description = run / "checkpoints" / "model.safetensors", run / "checkpoints" / "model.yaml"
    try:
        return yaml.safe_load(description.read_text()), load_file(weights)
    except (OSError, SafetensorError, yaml.YAMLError) as error:
        raise UserError(
            f"{option}: the model of {run} cannot be read ({str(error).splitlines()[0]}): train the run again"
        ) from error


def fingerprint_of(run: str | Path) -> str:
    """The fingerprint of the weights of a trained run."""
    return yaml.safe_load((Path(run) / "checkpoints" / "model.yaml").read_text(encoding="utf-8"))["fingerprint"]


def load_autoencoder(run: Path, option: str = "autoencoder_from") -> tuple[Autoencoder, str]:
    """The trained autoencoder of a run, frozen, and its fingerprint."""
    description, weights = _load(run, option)
    autoencoder = _described(description)
    autoencoder.load_state_dict(weights, strict=True)
    return autoencoder.requires_grad_(False).eval(), description["fingerprint"]


def load_diffusion(run: Path, option: str = "from") -> tuple[LatentDiffusion, Config]:
    """The trained model of a run, its network being the moving average, and its description."""
    description, weights = _load(run, option)
    info = info_from_dict(description["data"])
    model = build_model(description, info, _described(description))
    model.load_state_dict(weights, strict=True)
    return model.requires_grad_(False).eval(), description


def info_to_dict(info: DataInfo) -> Config:
    """A data set's description as plain containers."""
    return json.loads(json.dumps(vars(info)))


def info_from_dict(config: Config) -> DataInfo:
    """The description that `info_to_dict` wrote."""
    arguments: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return DataInfo(**arguments)
