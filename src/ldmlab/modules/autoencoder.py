"""Stage one as a LightningModule."""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L
import torch
from torch import Tensor

from ldmlab.autoencoders.base import Autoencoder
from ldmlab.modules.latent_diffusion import OptimizerFactory
from ldmlab.optimizers.groups import parameter_groups
from ldmlab.types import Batch


class AutoencoderModule(L.LightningModule):
    """Trains an autoencoder with an L1 reconstruction loss and a KL penalty (Rombach et al. 2022, section 3.1).

    `kl_weight` multiplies the KL in nats per pixel value, the unit in which the L1 loss is a mean, so the balance does
    not change with image size or downsampling factor.
    """

    def __init__(self, autoencoder: Autoencoder, optimizer: OptimizerFactory, kl_weight: float):
        super().__init__()
        self.autoencoder = autoencoder
        self.optimizer = optimizer
        self.kl_weight = kl_weight

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Reconstruction, KL and their weighted sum `loss` of a batch."""
        images = batch["image"]
        posterior = self.autoencoder.encode(images)
        reconstruction = self.autoencoder.decode(posterior.sample())
        l1 = (reconstruction - images).abs().mean()
        kl = posterior.kl()
        loss = l1 + self.kl_weight * kl.sum() / images.numel()
        return {"loss": loss, "l1": l1, "kl_per_latent": kl.mean()}

    def loss(self, batch: Batch) -> Tensor:
        """The training loss of a batch."""
        return self.losses(batch)["loss"]

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The training loss of a batch, its terms logged."""
        losses = self.losses(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return losses["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser over encoder and decoder; the budget sets its learning rate at every step."""
        return self.optimizer(parameter_groups(self.autoencoder))


@torch.inference_mode()
def latent_report(autoencoder: Autoencoder, batches: Iterable[Tensor]) -> dict[str, float | list[float]]:
    """What the latents of images (B, 3, H, W) look like: per channel mean, std, KL in nats per value; and the range.

    A channel with KL near zero carries nothing; a deviation near that of the posterior likewise.
    """
    kls, means, stds, low, high = [], [], [], torch.inf, -torch.inf
    for images in batches:
        posterior = autoencoder.encode(images)
        kls.append(posterior.kl().mean((0, 2, 3)))
        means.append(posterior.mean.mean((0, 2, 3)))
        stds.append(posterior.mean.std((0, 2, 3)))
        low, high = min(low, posterior.mean.min().item()), max(high, posterior.mean.max().item())
    return {
        "kl_per_channel": torch.stack(kls).mean(0).tolist(),
        "mean_per_channel": torch.stack(means).mean(0).tolist(),
        "std_per_channel": torch.stack(stds).mean(0).tolist(),
        "min": low,
        "max": high,
    }
