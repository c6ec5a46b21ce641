"""Networks of the library `transformers`, from a folder, the Hub's cache or the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldmlab.errors import UserError


def load_pretrained(architecture: str, model: str, revision: str | None, option: str = "metrics.features.model") -> Any:
    """The network `architecture` that `model`, a folder or an address on the Hub, holds; all of its weights are there.

    `option` is the setting that named it, for messages. Raises `UserError` where it cannot be had, and for weights of
    another architecture.
    """
    transformers = _library(model)
    load = getattr(transformers, architecture).from_pretrained
    network, found = _load(lambda **where: load(model, output_loading_info=True, **where), model, revision, option)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise UserError(f"{option}: {model} holds no {architecture}: it lacks {missing}, and others")
    return network.float().eval().requires_grad_(False)


def load_config(model: str, revision: str | None, option: str) -> Any:
    """What `model` says of itself; see `load_pretrained`."""
    load = _library(model).AutoConfig.from_pretrained
    return _load(lambda **where: load(model, **where), model, revision, option)


def load_tokenizer(model: str, revision: str | None, option: str) -> Any:
    """The tokenizer that belongs to `model`; see `load_pretrained`."""
    load = _library(model).AutoTokenizer.from_pretrained
    return _load(lambda **where: load(model, **where), model, revision, option)


def _library(model: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError(f"{model} needs transformers, which is not installed: pip install ldmlab[metrics]") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _load(load: Callable[..., Any], model: str, revision: str | None, option: str) -> Any:
    import huggingface_hub

    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise UserError(f"{option}: no such folder: {model}")
    where = {"revision": revision or "main"}
    try:
        try:
            return load(local_files_only=True, **where)
        except OSError:
            if Path(model).is_dir():
                raise
            # asked first, because downloads are tried again for half a minute where there is no network
            huggingface_hub.model_info(model, revision=revision, timeout=10)
            return load(**where)
    except Exception as error:  # of the library, of the network, of the file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"where there is internet, run `hf download {model}`, or set {option} to a folder with it"
        raise UserError(f"{option}: {model} could not be loaded ({reason}): {remedy}") from error
