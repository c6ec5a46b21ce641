"""LPIPS by torchmetrics, on torchvision's networks."""

from __future__ import annotations

from typing import Any

import torch

from ldmlab.errors import UserError

NETWORKS = ("alex", "vgg", "squeeze")


def load_lpips(network: str, option: str, instead: str) -> Any:
    """The frozen network of LPIPS (Zhang et al. 2018) for "alex", "vgg" or "squeeze".

    Its ImageNet weights are torchvision's, in torch.hub's cache or downloaded to it. `option` is the setting that asked
    for it, `instead` what does without. Raises `UserError` where they cannot be had.
    """
    if network not in NETWORKS:
        raise UserError(f"{option}: one of {', '.join(NETWORKS)} is needed, or {instead}, not {network}")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        net_type: Any = network
        net: Any = LearnedPerceptualImagePatchSimilarity(net_type, normalize=True).net
    except ModuleNotFoundError:
        raise UserError("LPIPS needs torchvision, which is not installed: pip install torchvision") from None
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{option}: the weights of {network} could not be downloaded ({str(error).splitlines()[0]}): "
            f"run once where there is internet and copy {torch.hub.get_dir()}/checkpoints, or {instead}"
        ) from error
    return net.eval().requires_grad_(False)
