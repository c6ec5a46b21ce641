"""Stage one as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from ldmlab import processes
from ldmlab.autoencoders.adversarial import Adversary, adaptive_factor, hinge_loss
from ldmlab.autoencoders.base import Autoencoder
from ldmlab.autoencoders.convolutional import ConvolutionalAutoencoder, Reconstruction
from ldmlab.autoencoders.equivariance import Equivariance, Move
from ldmlab.autoencoders.perceptual import PerceptualLoss
from ldmlab.autoencoders.regularizers import code_use
from ldmlab.optimizers.groups import parameter_groups
from ldmlab.settings import require
from ldmlab.types import Batch, OptimizerFactory

PIXEL_LOSSES = {"l1": F.l1_loss, "mse": F.mse_loss}


@dataclass(frozen=True)
class ReconstructionLoss:
    """How far reconstructions are from images: in pixels, "l1" or "mse", and in a network's eyes where there is one."""

    pixel: str = "l1"
    perceptual: PerceptualLoss | None = None

    def __post_init__(self) -> None:
        require(self.pixel in PIXEL_LOSSES, "pixel_loss", f"one of {', '.join(PIXEL_LOSSES)}", self.pixel)

    def __call__(self, reconstructions: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of reconstructions of images, both (B, 3, H, W), and its terms by name."""
        terms = {self.pixel: PIXEL_LOSSES[self.pixel](reconstructions, images)}
        loss = terms[self.pixel]
        if self.perceptual is not None:
            terms[self.perceptual.name] = self.perceptual(reconstructions, images)
            loss = loss + self.perceptual.weight * terms[self.perceptual.name]
        return loss, terms

    @property
    def trained_against(self) -> tuple[str, ...]:
        """SHA-256 of the weights that are asked for their opinion."""
        return () if self.perceptual is None else self.perceptual.trained_against


class AutoencoderModule(L.LightningModule):
    """Trains an autoencoder: reconstruction, and what its regularizer adds (Rombach et al. 2022, section 3.1).

    Args:
        autoencoder: to be trained.
        optimizer: parameter groups to the autoencoder's optimiser; the budget sets its learning rate at every step.
        reconstruction: the loss on reconstructions.
        equivariance: draws the moves of latents and images in training; None: they are never moved.
    """

    def __init__(
        self,
        autoencoder: ConvolutionalAutoencoder,
        optimizer: OptimizerFactory,
        reconstruction: ReconstructionLoss,
        equivariance: Equivariance | None = None,
    ):
        super().__init__()
        self.autoencoder = autoencoder
        self.optimizer = optimizer
        self.reconstruction = reconstruction
        self.equivariance = equivariance

    def latent_size(self, batch: Batch) -> tuple[int, int]:
        """Height and width of the latents of a batch."""
        height, width = (side // self.autoencoder.downsampling_factor for side in batch["image"].shape[2:])
        return height, width

    def draw_move(self, batch: Batch) -> Move | None:
        """How the latents and images of a batch are moved in training."""
        return None if self.equivariance is None else self.equivariance.draw(*self.latent_size(batch))

    def smallest_move(self, batch: Batch) -> Move | None:
        """The move that leaves least of a batch."""
        return None if self.equivariance is None else Move(0, self.equivariance.lowest(*self.latent_size(batch)))

    def reconstruct(self, batch: Batch, move: Move | None = None) -> tuple[Tensor, Reconstruction]:
        """The images of a batch, moved if they are to be, and their reconstructions."""
        images = batch["image"]
        if move is None:
            return images, self.autoencoder(images)
        return move.images(images, self.autoencoder.downsampling_factor), self.autoencoder(images, move.latents)

    def losses(self, batch: Batch, move: Move | None = None) -> dict[str, Tensor]:
        """The training loss of a batch, moved if it is to be, as `loss`; its terms; and values worth a log."""
        images, made = self.reconstruct(batch, move)
        loss, terms = self.reconstruction(made.images, images)
        return {"loss": loss + made.penalty, **terms, **made.values}

    def loss(self, batch: Batch, move: Move | None = None) -> Tensor:
        """The training loss of a batch, moved if it is to be."""
        return self.losses(batch, move)["loss"]

    def hardest_loss(self, batch: Batch) -> Tensor:
        """The loss with all that training may bring, and as small as images become: to try whether it can be had."""
        return self.loss(batch, self.smallest_move(batch))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        """The training loss of a batch, its terms logged."""
        losses = self.losses(batch, self.draw_move(batch))
        self.log_terms(losses)
        return losses["loss"]

    def log_terms(self, terms: dict[str, Tensor]) -> None:
        """Logs values of the training step."""
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """The optimiser over encoder and decoder; the budget sets its learning rate at every step."""
        return self.optimizer(parameter_groups(self.autoencoder))


class Gradients(NamedTuple):
    """Two scalars whose gradients train autoencoder and discriminator (None while it is not), and values to log."""

    autoencoder: Tensor
    discriminator: Tensor | None
    terms: dict[str, Tensor]


class AdversarialAutoencoderModule(AutoencoderModule):
    """The same, against a discriminator (Rombach et al. 2022, eq. 25, after Esser et al. 2021).

    Lightning's automatic optimisation cannot serve two optimisers with one backward pass for both, so accumulating and
    clipping gradients are done here. The discriminator's optimiser is stepped behind Lightning's back: otherwise each
    batch would count as two of the trainer's steps.

    Args:
        autoencoder, optimizer, reconstruction, equivariance: as for `AutoencoderModule`.
        adversary: the discriminator and its settings.
        used: the share of the budget used so far.
        accumulate: batches to an optimiser step.
        clip: largest norm of all gradients of a network together; None: none.
    """

    def __init__(
        self,
        autoencoder: ConvolutionalAutoencoder,
        optimizer: OptimizerFactory,
        reconstruction: ReconstructionLoss,
        equivariance: Equivariance | None,
        adversary: Adversary,
        used: Callable[[], float],
        accumulate: int = 1,
        clip: float | None = None,
    ):
        super().__init__(autoencoder, optimizer, reconstruction, equivariance)
        self.automatic_optimization = False
        self.adversary, self.used = adversary, used
        self.discriminator = adversary.discriminator
        self.accumulate, self.clip = accumulate, clip
        self._accumulated = 0

    @property
    def phase(self) -> str:
        """What is trained now; steps of one phase cost the same."""
        return self.adversary.phase(self.used())

    def gradients(self, batch: Batch, move: Move | None = None, used: float | None = None) -> Gradients:
        """What the batch asks of both networks, once the share `used` of the budget is used; None: as much as is.

        Every loss on reconstructions reaches the autoencoder through them. So the losses' gradients are computed at the
        reconstructions first, compared at the decoder's last layer, added up, and go on into the autoencoder together:
        perceptual network and discriminator are passed through once.
        """
        used = self.used() if used is None else used
        phase = self.adversary.phase(used)
        images, made = self.reconstruct(batch, move)
        # cut off from the autoencoder, in float32: a small gradient would vanish beside a large one in half precision;
        # and a view, since floating-point operations cannot be counted up to a leaf
        cut = made.images.detach().float().requires_grad_()
        reconstructions = cut.view_as(cut)
        loss, terms = self.reconstruction(reconstructions, images)
        (gradient,) = torch.autograd.grad(loss, reconstructions)
        terms = {"loss": loss + made.penalty, **terms, **made.values}
        discriminator_loss = None

        if phase != "reconstruction":
            real, fake = self.discriminator(images), self.discriminator(reconstructions)
            discriminator_loss = hinge_loss(real, fake)
            terms |= {"logits_real": real.mean(), "logits_fake": fake.mean()}
            terms["discriminator_loss"] = discriminator_loss
        if phase == "adversarial":
            (adversarial,) = torch.autograd.grad(-fake.mean(), reconstructions, retain_graph=True)
            norm = self._last_layer_norm(made.images, gradient)
            adversarial_norm = self._last_layer_norm(made.images, adversarial)
            factor = adaptive_factor(norm, adversarial_norm, self.adversary.largest_factor)
            weight = self.adversary.weight_at(used)
            gradient = gradient + weight * factor * adversarial
            terms |= {"adaptive_factor": factor, "adversarial_weight": torch.tensor(weight)}
            terms |= {"gradient_norm_reconstruction": norm, "gradient_norm_adversarial": adversarial_norm}
        return Gradients((made.images * gradient.detach()).sum() + made.penalty, discriminator_loss, terms)

    def _last_layer_norm(self, reconstructions: Tensor, gradient: Tensor) -> Tensor:
        """The norm of a loss's gradient at the decoder's last layer, given the one at the reconstructions."""
        (weights,) = torch.autograd.grad(
            reconstructions, self.autoencoder.last_layer, grad_outputs=gradient, retain_graph=True
        )
        return weights.norm()

    def loss(self, batch: Batch, move: Move | None = None, used: float | None = None) -> Tensor:
        """A scalar whose backward pass is that of a training step: to count what it costs. See `gradients`."""
        autoencoder, discriminator, _ = self.gradients(batch, move, used)
        return autoencoder if discriminator is None else autoencoder + discriminator

    def hardest_loss(self, batch: Batch) -> Tensor:
        """The same with the discriminator, whenever that starts."""
        return self.loss(batch, self.smallest_move(batch), used=1.0)

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """One batch for both networks, and a step of both optimisers when enough batches were accumulated."""
        autoencoder, discriminator, terms = self.gradients(batch, self.draw_move(batch))
        self.manual_backward(autoencoder / self.accumulate)
        if discriminator is not None:
            self.manual_backward(discriminator / self.accumulate)
        self._accumulated += 1
        if self._accumulated == self.accumulate:
            self._accumulated = 0
            terms |= self._step(discriminator is not None)
        self.log_terms(terms)

    def _step(self, both: bool) -> dict[str, Tensor]:
        """A step of the optimisers; the gradients' norms before clipping."""
        counted: Any = self.optimizers()
        raw: Any = self.optimizers(use_pl_optimizer=False)
        norms = {"gradient_norm_autoencoder": self._clipped(self.autoencoder)}
        counted[0].step()
        counted[0].zero_grad()
        if both:
            norms["gradient_norm_discriminator"] = self._clipped(self.discriminator)
            raw[1].step()
            raw[1].zero_grad()
        return norms

    def _clipped(self, network: torch.nn.Module) -> Tensor:
        processes.average_gradients(network.parameters())
        return torch.nn.utils.clip_grad_norm_(network.parameters(), self.clip or float("inf"))

    def configure_optimizers(self) -> Any:
        """The optimisers of autoencoder and discriminator."""
        return [super().configure_optimizers(), self.adversary.optimizer(parameter_groups(self.discriminator))]


@torch.inference_mode()
def latent_report(autoencoder: Autoencoder, batches: Iterable[Tensor]) -> dict[str, float | list[float]]:
    """What the latents of images (B, 3, H, W) look like, over all of them.

    Per channel: mean and deviation of the posterior's means; mean and deviation of normalised draws, which are 0 and 1
    if the statistics measured in training hold for these images; and the KL in nats per value. A channel with KL near
    zero carries nothing. Latents without a deviation of their own have no KL. And the range; and of a code, how many of
    its words the images use.
    """
    codes = autoencoder.codes
    counts = torch.zeros(codes or 0, dtype=torch.long)
    # sums in float64, as all latents of large images would not fit into memory
    values, low, high = 0, torch.inf, -torch.inf
    sums = torch.zeros(4, autoencoder.latent_channels, dtype=torch.float64)
    for images in batches:
        posterior = autoencoder.encode(images)
        mean, std = posterior.mean.double(), posterior.std.double()
        parts = torch.stack([mean, mean.square(), std.square(), posterior.kl().double()])
        sums += parts.sum((1, 3, 4)).cpu()
        values += mean[:, 0].numel()
        low, high = min(low, posterior.mean.min().item()), max(high, posterior.mean.max().item())
        if codes:
            counts += torch.bincount(autoencoder.code_indices(posterior.mean).flatten().cpu(), minlength=codes)
    mean, square, own_variance, kl = sums / values
    variance = (square - mean.square()).clamp(min=0)
    drawn = (variance + own_variance).sqrt()  # of draws, without drawing
    own_mean, own_std = autoencoder.latent_mean.double().cpu(), autoencoder.latent_std.double().cpu()
    report: dict[str, float | list[float]] = {
        "mean_per_channel": mean.tolist(),
        "std_per_channel": variance.sqrt().tolist(),
        "normalized_mean_per_channel": ((mean - own_mean) / own_std).tolist(),
        "normalized_std_per_channel": (drawn / own_std).tolist(),
        "min": low,
        "max": high,
    }
    if own_variance.any():
        report["kl_per_channel"] = kl.tolist()
    if codes:
        report |= {name: float(value) for name, value in code_use(counts).items()}
    return report
