"""Vision transformers whose weights come from the Hugging Face Hub: DINOv2 and CLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmlab.metrics.extractors.base import FeatureExtractor, Features, resized, resized_to_bytes
from ldmlab.pretrained.digests import digest_of
from ldmlab.pretrained.hub import load_pretrained

INPUT_SIZE = 224
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DINOV2_WIDTHS = {384: "vits14", 768: "vitb14", 1024: "vitl14", 1536: "vitg14"}


class DINOv2(FeatureExtractor):
    """The class token of DINOv2 (Oquab et al. 2023) after its last norm: FD-DINOv2 (Stein et al. 2023).

    ViT-L/14 on 224 px, prepared as in EDM2 (Karras et al. 2024): bicubic with antialiasing on floats, neither clamped
    nor rounded. The position embeddings are brought to 16 x 16 patches as the original code does, which `transformers`
    does a fifth of a patch differently.

    `model` is an address on the Hub or a folder; another size of DINOv2 has another name in the metric's.
    """

    def __init__(self, model: str = "facebook/dinov2-large", revision: str | None = None, batch_size: int = 32):
        network = load_pretrained("Dinov2Model", model, revision)
        self.hash = digest_of(network)
        positions = network.embeddings.position_embeddings
        network.embeddings.position_embeddings = nn.Parameter(
            resample_positions(positions.detach(), INPUT_SIZE // network.config.patch_size)
        )
        super().__init__(network, batch_size)
        self.dimensions = network.config.hidden_size
        self.name = f"dinov2_{DINOV2_WIDTHS.get(self.dimensions, self.dimensions)}"
        self.input_size = INPUT_SIZE
        self.resize = "bicubic, antialiased"

    def _features(self, images: Tensor) -> Features:
        x = resized(images.float(), INPUT_SIZE) / 255
        return Features(self.network(pixel_values=normalised(x, *IMAGENET)).pooler_output)


class CLIP(FeatureExtractor):
    """CLIP's image embedding (Radford et al. 2021), after its projection and not normalised.

    ViT-L/14 on 224 px unless `model`, an address on the Hub or a folder, is another one. Images are resized as CLIP's
    own code does, bicubic to bytes.
    """

    def __init__(self, model: str = "openai/clip-vit-large-patch14", revision: str | None = None, batch_size: int = 32):
        network = load_pretrained("CLIPVisionModelWithProjection", model, revision)
        self.hash = digest_of(network)
        super().__init__(network, batch_size)
        self.dimensions = network.config.projection_dim
        self.input_size = network.config.image_size
        self.name = f"clip_vit{network.config.hidden_size}_{network.config.patch_size}_{self.input_size}"
        self.resize = "bicubic, antialiased, rounded to bytes"

    def _features(self, images: Tensor) -> Features:
        return Features(self.network(pixel_values=clip_pixels(images, self.input_size)).image_embeds)


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """uint8 images (B, 3, H, W) as a CLIP model of input size `size` takes them."""
    return normalised(resized_to_bytes(images.float(), size) / 255, *CLIP_PIXELS)


def normalised(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x - mean) / std for each channel of (B, 3, H, W)."""
    return (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]


def resample_positions(positions: Tensor, patches: int) -> Tensor:
    """Position embeddings (1, 1 + n², D) for an image of patches x patches, (1, 1 + patches², D).

    The original samples the n x n grid with the scale (patches + 0.1) / n, not patches / n.
    """
    token, grid = positions[:, :1], positions[:, 1:]
    side = round(grid.shape[1] ** 0.5)
    if side == patches:
        return positions
    scale = (patches + 0.1) / side
    grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, grid.permute(0, 2, 3, 1).flatten(1, 2).to(token)], 1)
