"""Autoencoders that others trained: folders of diffusers, local or on the hub, and checkpoints of CompVis.

What a network looks like is read off its weights, so no configuration has to come with a checkpoint. The result is one
of our own networks with these weights: a run that stands on it needs neither the file nor diffusers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ldmlab.autoencoders.base import Autoencoder
from ldmlab.autoencoders.convolutional import PaperAutoencoder
from ldmlab.autoencoders.regularizers import KL, VQ, Regularizer
from ldmlab.autoencoders.tiny import TinyAutoencoder
from ldmlab.errors import UserError
from ldmlab.interop.checkpoints import SUFFIXES, Weights, read_weights
from ldmlab.settings import SettingError, require

Config = dict[str, Any]

OPTION = "autoencoder.path"
FOLDERS = ("", "vae", "vqvae")  # where an autoencoder lies in a diffusers folder, by itself or in a pipeline's
CLASSES = ("AutoencoderKL", "VQModel", "AutoencoderTiny")
ACTIVATIONS = {"AutoencoderKL": "silu", "VQModel": "silu", "AutoencoderTiny": "relu"}
USUAL_SCALING = {"AutoencoderKL": 0.18215, "AutoencoderTiny": 1.0}  # of folders older than the setting
WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

COMPVIS_GROUPS = 32  # of the group norms, which no checkpoint says

# Beginnings of the names of others, as regular expressions, and ours.
_SHARED = [
    (r"quant_conv", "encoder.to_latent"),
    (r"post_quant_conv", "decoder.from_latent"),
    (r"quantize\.embedding\.weight", "regularizer.codebook"),
    (r"(encoder|decoder)\.conv_in", r"\1.conv_in"),
    (r"encoder\.conv_out", "encoder.conv_out"),
    (r"decoder\.conv_out", "decoder.out"),
]
_LAYERS = r"(norm1|conv1|norm2|conv2)"
DIFFUSERS = [
    *_SHARED,
    (r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.resnets\.(\d+)\." + _LAYERS, r"\1.levels.\2.blocks.\3.\4"),
    (r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.resnets\.(\d+)\.conv_shortcut", r"\1.levels.\2.blocks.\3.skip"),
    (r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.attentions\.(\d+)", r"\1.levels.\2.attentions.\3"),
    (r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv", r"\1.levels.\2.resample.1"),
    (r"(encoder|decoder)\.mid_block\.resnets\.0", r"\1.middle.first"),
    (r"(encoder|decoder)\.mid_block\.attentions\.0", r"\1.middle.attention"),
    (r"(encoder|decoder)\.mid_block\.resnets\.1", r"\1.middle.last"),
    (r"(encoder|decoder)\.conv_norm_out", r"\1.norm_out"),
]
COMPVIS = [
    *_SHARED,
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\." + _LAYERS, r"\1.levels.\2.blocks.\3.\4"),
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.nin_shortcut", r"\1.levels.\2.blocks.\3.skip"),
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.attn\.(\d+)", r"\1.levels.\2.attentions.\3"),
    (r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(?:down|up)sample\.conv", r"\1.levels.\2.resample.1"),
    (r"(encoder|decoder)\.mid\.block_1", r"\1.middle.first"),
    (r"(encoder|decoder)\.mid\.attn_1", r"\1.middle.attention"),
    (r"(encoder|decoder)\.mid\.block_2", r"\1.middle.last"),
    (r"(encoder|decoder)\.norm_out", r"\1.norm_out"),
]
ATTENTION = {
    **dict.fromkeys(("group_norm", "norm"), "norm"),
    **dict.fromkeys(("to_q", "query", "q"), "query"),
    **dict.fromkeys(("to_k", "key", "k"), "key"),
    **dict.fromkeys(("to_v", "value", "v"), "value"),
    **dict.fromkeys(("to_out.0", "proj_attn", "proj_out"), "out"),
}
"""Names of the layers of an attention block, in diffusers then and now and in CompVis, and ours."""


def load(path: str, downsampling_factor: int, scaling: Literal["own", "measured"] = "own") -> Autoencoder:
    """The autoencoder that `path` holds, frozen.

    Args:
        path: a folder of diffusers or an address on the Hugging Face Hub, of an autoencoder or of a pipeline with one
            (AutoencoderKL, VQModel, AutoencoderTiny); or a checkpoint of CompVis, of a first stage or with one in it.
        downsampling_factor: f, to be compared with what is found.
        scaling: which latents diffusion sees. "own": scaled as whoever trained it did, where that is known; otherwise
            and with "measured": each channel of mean 0 and deviation 1 on the data at hand.

    Raises:
        UserError: it is not there, cannot be read or is no autoencoder of these kinds.
        SettingError: it downsamples by another factor.
    """
    require(scaling in ("own", "measured"), "scaling", "own or measured", scaling)
    place = Path(path).expanduser()
    autoencoder = _from_checkpoint(place) if place.suffix in SUFFIXES else _from_folder(path, place)
    if autoencoder.downsampling_factor != downsampling_factor:
        found = autoencoder.downsampling_factor
        raise SettingError(
            f"path: {path} downsamples by {found}, not by {downsampling_factor}: use downsampling=f{found}"
        )
    if scaling == "measured":
        autoencoder.scaled = False
    return autoencoder.requires_grad_(False).eval()


def _from_folder(path: str, place: Path) -> Autoencoder:
    if not place.is_dir():
        if path.startswith((".", "/", "~")):
            raise UserError(f"{OPTION}: no such folder or file: {path}")
        place = _download(path)
    found = _described(place)
    if found is not None:
        folder, config = found
        return _from_diffusers(config, _read(folder, WEIGHT_FILES))
    raise UserError(f"{OPTION}: {path} holds no {', '.join(CLASSES[:-1])} or {CLASSES[-1]}")


def _described(place: Path) -> tuple[Path, Config] | None:
    """The folder of an autoencoder within `place`, and its configuration; None if there is none."""
    for folder in FOLDERS:
        description = place / folder / "config.json"
        try:
            config = json.loads(description.read_text()) if description.is_file() else {}
        except ValueError as error:
            raise UserError(f"{OPTION}: {description} cannot be read ({error})") from error
        if config.get("_class_name") in CLASSES:
            return place / folder, config
    return None


def _download(address: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [f"{folder}/{file}".lstrip("/") for folder in FOLDERS for file in ("config.json", *WEIGHT_FILES)]
    try:
        try:
            kept = Path(snapshot_download(address, allow_patterns=wanted, local_files_only=True))
        except OSError:
            kept = None
        # other parts of the repository may be here, and the autoencoder not
        found = kept and _described(kept)
        if kept and found and any((found[0] / file).is_file() for file in WEIGHT_FILES):
            return kept
        return Path(snapshot_download(address, allow_patterns=wanted, etag_timeout=10))
    except Exception as error:  # of the library, of the network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{OPTION}: {address} could not be loaded ({reason}): where there is internet, run "
            f"`hf download {address}`, or give a folder or file that is here"
        ) from error


def _read(folder: Path, files: Iterable[str]) -> Weights:
    for file in files:
        if (folder / file).is_file():
            return read_weights(folder / file, OPTION)
    raise UserError(f"{OPTION}: {folder} has no weights ({', '.join(files)})")


def _from_diffusers(config: Config, weights: Weights) -> Autoencoder:
    for key, known in (("norm_type", "group"), ("act_fn", ACTIVATIONS[config["_class_name"]])):
        if config.get(key, known) != known:
            raise UserError(f"{OPTION}: an autoencoder with {key} {config[key]} is not known here, {known} is")
    if config["_class_name"] == "AutoencoderTiny":
        autoencoder = _tiny(config, weights)
    else:
        autoencoder = _paper(renamed(weights, DIFFUSERS), config.get("norm_num_groups", 32))
    scaling = config.get("scaling_factor", USUAL_SCALING.get(config["_class_name"]))
    if scaling is not None:
        channels = autoencoder.latent_channels
        mean = torch.tensor(config.get("latents_mean") or [config.get("shift_factor") or 0.0] * channels)
        std = torch.tensor(config.get("latents_std") or [1.0] * channels)
        _scale(autoencoder, mean, std / scaling)
    return autoencoder


def _from_checkpoint(file: Path) -> Autoencoder:
    weights = read_weights(file, OPTION)
    if any(".down_blocks." in name for name in weights):
        raise UserError(f"{OPTION}: {file} is a part of a diffusers folder: give the folder, with its config.json")
    scaling = weights.get("scale_factor")
    # a checkpoint of the whole model holds its first stage under this name
    inside = "first_stage_model."
    if any(name.startswith(inside) for name in weights):
        weights = {name.removeprefix(inside): w for name, w in weights.items() if name.startswith(inside)}
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")
    weights = {name: weight for name, weight in weights.items() if name.startswith(parts)}
    autoencoder = _paper(renamed(weights, COMPVIS, reverse_decoder=True), COMPVIS_GROUPS)
    if scaling is not None:
        channels = autoencoder.latent_channels
        _scale(autoencoder, torch.zeros(channels), torch.full((channels,), 1 / float(scaling)))
    return autoencoder


def _scale(autoencoder: Autoencoder, mean: Tensor, std: Tensor) -> None:
    autoencoder.latent_mean.copy_(mean)
    autoencoder.latent_std.copy_(std)
    autoencoder.scaled = True


def renamed(weights: Weights, names: list[tuple[str, str]], reverse_decoder: bool = False) -> Weights:
    """The weights under our names; `reverse_decoder` where levels of the decoder are counted from the image."""
    found: Weights = {}
    for name, weight in weights.items():
        for pattern, ours in names:
            match = re.match(pattern + r"(?=\.|$)", name)
            if match:
                rest = name[match.end() :]
                start = match.expand(ours)
                break
        else:
            raise UserError(f"{OPTION}: {name} belongs to no autoencoder that is known here")
        if "attention" in start:
            layer, _, kind = rest[1:].rpartition(".")
            rest = f".{ATTENTION.get(layer, layer)}.{kind}"
            if weight.ndim == 4:  # a 1 x 1 convolution, which is a linear layer
                weight = weight[:, :, 0, 0]
        found[start + rest] = weight
    if reverse_decoder:
        last = max((_level(name) for name in found if name.startswith("decoder.levels")), default=0)
        found = {
            re.sub(r"^decoder\.levels\.(\d+)", lambda m: f"decoder.levels.{last - int(m[1])}", name): weight
            for name, weight in found.items()
        }
    return found


def _level(name: str) -> int:
    return int(name.split(".")[2])


def _paper(weights: Weights, groups: int) -> Autoencoder:
    """Our network for weights under our names."""
    try:
        settings, regularizer, description = _settings(weights, groups)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{OPTION}: the weights are not those of such an autoencoder ({error})") from error
    autoencoder = PaperAutoencoder(regularizer=regularizer, **settings)
    autoencoder.settings = {
        "_target_": "ldmlab.autoencoders.convolutional.PaperAutoencoder",
        "regularizer": description,
        **settings,
    }
    if isinstance(regularizer, VQ):
        weights = {**weights, **_codebook_state(weights["regularizer.codebook"])}
    _fill(autoencoder, weights)
    return autoencoder


def _settings(weights: Weights, groups: int) -> tuple[Config, Regularizer, Config]:
    """What the shapes of weights say about their network, its regularizer, and that one's configuration."""
    levels = 1 + max(_level(name) for name in weights if name.startswith("encoder.levels"))
    widths = [weights[f"encoder.levels.{level}.blocks.0.conv1.weight"].shape[0] for level in range(levels)]
    channels = math.gcd(*widths)
    convolutions = ["encoder.to_latent.weight" in weights, "decoder.from_latent.weight" in weights]
    latent_features = weights["decoder.conv_in.weight"].shape[1]
    latent_channels = weights["decoder.from_latent.weight"].shape[1] if convolutions[1] else latent_features
    settings: Config = {
        "downsampling_factor": 2 ** (levels - 1),
        "latent_channels": latent_channels,
        "channels": channels,
        "channel_multipliers": [width // channels for width in widths],
        "blocks": len({name.split(".")[4] for name in weights if name.startswith("encoder.levels.0.blocks.")}),
        "attention_levels": sorted({_level(n) for n in weights if re.match(r"encoder\.levels\.\d+\.attentions", n)}),
        "middle_attention": "encoder.middle.attention.query.weight" in weights,
        "groups": groups,
        "latent_features": latent_features,
        "latent_convolutions": convolutions,
    }
    room = "ldmlab.autoencoders.regularizers"
    if "regularizer.codebook" in weights:
        codes = weights["regularizer.codebook"].shape[0]
        description: Config = {"_target_": f"{room}.VQ", "latent_channels": latent_channels, "codes": codes}
        return settings, VQ(latent_channels, codes), description
    return settings, KL(0.0), {"_target_": f"{room}.KL", "weight": 0.0}


def _codebook_state(codebook: Tensor) -> Weights:
    """What a codebook remembers of its training, which no published weights have."""
    return {
        "regularizer.counts": torch.ones(len(codebook)),
        "regularizer.sums": codebook,
        "regularizer.begun": torch.tensor(True),
    }


def _tiny(config: Config, weights: Weights) -> Autoencoder:
    settings: Config = {
        "downsampling_factor": 2 ** (len(config["encoder_block_out_channels"]) - 1),
        "latent_channels": config.get("latent_channels", 4),
        "encoder_channels": config["encoder_block_out_channels"],
        "encoder_blocks": config["num_encoder_blocks"],
        "decoder_channels": config["decoder_block_out_channels"],
        "decoder_blocks": config["num_decoder_blocks"],
    }
    autoencoder = TinyAutoencoder(**settings)
    autoencoder.settings = {"_target_": "ldmlab.autoencoders.tiny.TinyAutoencoder", **settings}
    _fill(autoencoder, weights)
    return autoencoder


def _fill(autoencoder: Autoencoder, weights: Weights) -> None:
    """Loads weights, all of them and no others; latent statistics aside, which are measured."""
    statistics = {name: value for name, value in autoencoder.state_dict().items() if name.startswith("latent_")}
    try:
        # load_state_dict converts half precision
        autoencoder.load_state_dict({**statistics, **weights})
    except RuntimeError as error:
        # perhaps hundreds of keys, below a line that only says which class it is
        problem = " ".join(str(error).partition("\n")[2].split() or str(error).split())
        problem = f"{problem[:200]} ..." if len(problem) > 200 else problem
        raise UserError(f"{OPTION}: the weights do not fit the autoencoder they seem to be of: {problem}") from error
