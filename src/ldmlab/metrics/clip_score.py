"""Whether images show what their captions say, to the eyes of a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmlab.metrics.extractors.base import full_precision
from ldmlab.metrics.extractors.transformer import clip_pixels
from ldmlab.pretrained.digests import digest_of
from ldmlab.pretrained.hub import load_pretrained, load_tokenizer


class CLIPScore:
    """100 max(cos(image, caption), 0) of CLIP's embeddings (Hessel et al. 2021, with 100 for their weight of 2.5).

    `model` is an address on the Hugging Face Hub, such as "openai/clip-vit-base-patch16", or a folder. Scores of
    different models do not compare: `name` and `hash` say which one it was. Raises `UserError` where it
    cannot be had.
    """

    def __init__(self, model: str, revision: str | None = None):
        self.network: Any = load_pretrained("CLIPModel", model, revision, "metrics.clip_score")
        self.tokenizer: Any = load_tokenizer(model, revision, "metrics.clip_score")
        self.name = f"clip_score_{Path(model).name}"
        self.hash = digest_of(self.network)

    @torch.inference_mode()
    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """The score of each pair, (B,), for images uint8 (B, 3, H, W); captions are cut to what the model can read."""
        config, device = self.network.config, images.device
        self.network.to(device)
        told = self.tokenizer(
            list(captions),
            padding=True,
            truncation=True,
            max_length=config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(device)
        pixels = clip_pixels(images, config.vision_config.image_size)
        with full_precision(device):
            seen = _embedding(self.network.get_image_features(pixel_values=pixels))
            read = _embedding(self.network.get_text_features(told["input_ids"], told["attention_mask"]))
        return 100 * F.cosine_similarity(seen, read, dim=-1).clamp(min=0)


def _embedding(output: Any) -> Tensor:
    """The projected embedding, which transformers 4 gives as it is and transformers 5 within an output."""
    return output if isinstance(output, Tensor) else output.pooler_output
