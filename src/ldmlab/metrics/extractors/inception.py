"""Inception-v3: the features of FID, sFID and the Inception score as papers report them."""

from __future__ import annotations

import http.client
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ldmlab.errors import UserError
from ldmlab.metrics.extractors.base import FeatureExtractor, Features
from ldmlab.pretrained.digests import file_digest

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SPATIAL_CHANNELS = 7
PLAIN_NAMES = {"fd": "fid", "sfd": "sfid", "fdinf": "fidinf"}


class InceptionV3(FeatureExtractor):
    """Inception-v3's 2048 pooled features with torch-fidelity's weights and resize: FID and KID as papers report them.

    Spatial features are those of sFID (Nash et al. 2021) as ADM's evaluator takes them: the first 7 channels of
    `mixed_6/conv` of the TensorFlow graph, 17 x 17 x 7 = 2023 numbers in its order.

    `weights_path` is a downloaded `weights-inception-2015-12-05-6726825d.pth`; None looks in torch.hub's cache, then
    downloads to it. Raises `UserError` without torch-fidelity, without the weights, or with other weights.
    """

    def __init__(self, weights_path: str | os.PathLike[str] | None = None, batch_size: int = 32):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError("FID needs torch-fidelity, which is not installed: pip install ldmlab[metrics]") from None
        weights = _weights(weights_path)
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
        super().__init__(network, batch_size)
        self.name = "inception"
        self.dimensions = 2048
        self.input_size = network.INPUT_IMAGE_SIZE
        self.resize = "bilinear as in TensorFlow 1, not antialiased"
        self.hash = INCEPTION_SHA256
        # mixed_4 to mixed_7 of TensorFlow are Mixed_6b to Mixed_6e of PyTorch
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def metric_name(self, metric: str) -> str:
        """The metric's own name, without that of the features: "fid", "kid", "recall"."""
        return PLAIN_NAMES.get(metric, metric)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # rows, columns, channels: the order of TensorFlow, and so of published statistics
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def _features(self, images: Tensor) -> Features:
        return Features(self.network(images)[0], self._spatial)

    def logits(self, pooled: Tensor) -> Tensor:
        """Logits (N, 1008) of pooled features (N, 2048), without bias, as the Inception score of papers takes them."""
        with torch.inference_mode():
            return pooled.to(self.device) @ self.network.fc.weight.T  # type: ignore[union-attr, operator]


def _weights(weights_path: str | os.PathLike[str] | None) -> Path:
    """The verified file of weights, downloaded when no path is given and torch.hub's cache has none."""
    name = INCEPTION_URL.rsplit("/", 1)[1]
    path = Path(weights_path) if weights_path else Path(torch.hub.get_dir()) / "checkpoints" / name
    remedy = f"download {INCEPTION_URL} to {path}, or set metrics.features.weights_path to it"
    if not path.is_file():
        if weights_path:
            raise UserError(f"the weights of Inception-v3 are not at {path}: download {INCEPTION_URL} to there")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), INCEPTION_SHA256)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise UserError(f"the weights of Inception-v3 could not be downloaded ({error}): {remedy}") from error
    if (digest := file_digest(path)) != INCEPTION_SHA256:
        raise UserError(
            f"{path} has SHA-256 {digest[:12]}… instead of {INCEPTION_SHA256[:12]}…, so it would not give FID: "
            f"delete it, then {remedy}"
        )
    return path
