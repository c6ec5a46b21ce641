"""Weights out of files of others, without running what may be hidden in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ldmlab.errors import UserError

Weights = dict[str, Tensor]

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


class Unopened:
    """Stands for everything that a pickle names beside weights: takes what it is given, and does nothing."""

    def __init__(self, *arguments: Any, **options: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_weights(file: Path, option: str) -> Weights:
    """The tensors by name in `file`, or in its `state_dict`.

    Checkpoints of Lightning pickle their callbacks, and whoever wrote a pickle decides what it runs. Here it runs
    nothing: whatever is not known to be harmless becomes an `Unopened`.

    Raises:
        UserError: it is not there, cannot be read or holds no weights; the message names `option`.
    """
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
    except FileNotFoundError:
        raise UserError(f"{option}: no such file: {file}") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{option}: {file} holds more than weights, which is not opened as it may hold a program: save its "
            "state_dict alone, best as .safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise UserError(f"{option}: {file} cannot be read ({str(error).splitlines()[0]})") from error
    found: Any = content.get("state_dict", content) if isinstance(content, dict) else content
    named = found.items() if isinstance(found, dict) else ()
    weights = {name: value for name, value in named if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{option}: {file} holds no weights by name")
    return weights


def _unpickled(file: Path) -> Any:
    with file.open("rb") as opened:
        begins = opened.read(1)
    if zipfile.is_zipfile(file):
        strangers: list[Any] = [(Unopened, name) for name in get_unsafe_globals_in_checkpoint(file)]
    elif begins == pickle.PROTO:  # as torch saved before version 1.6
        strangers = []
    else:
        raise ValueError("it is no file of torch.save: perhaps a page that was saved in its place")
    with safe_globals(strangers):
        return torch.load(file, map_location="cpu", weights_only=True)
