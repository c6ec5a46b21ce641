"""Stage two as a LightningModule."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from ldmlab.modules.ema import PowerEMA
from ldmlab.modules.loss import DiffusionLoss
from ldmlab.modules.model import ConditionalDenoiser, LatentDiffusion
from ldmlab.modules.sharding import Whole, shard
from ldmlab.optimizers.groups import parameter_groups
from ldmlab.types import Batch, OptimizerFactory


class LatentDiffusionModule(L.LightningModule):
    """Trains a `LatentDiffusion` and keeps the moving average of its network beside the raw weights.

    The average is a submodule, so a checkpoint always holds both and no weights are ever swapped.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        optimizer: OptimizerFactory,
        ema_gamma: float,
        drop_probability: float = 0.1,
        drop_each_probability: float = 0.1,
    ):
        super().__init__()
        self.model = model
        self.criterion = DiffusionLoss(model.objective, drop_probability, drop_each_probability)
        self.ema: PowerEMA[ConditionalDenoiser] = PowerEMA(model.network, ema_gamma)
        self.optimizer = optimizer
        self.whole: Whole | None = None  # where weights are spread over devices

    def configure_model(self) -> None:
        """Spreads the weights over devices, where the trainer's strategy is to."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and self.whole is None:
            self.whole = Whole(self.model.network)
            mesh = strategy.device_mesh["data_parallel"]
            shard(self.model.network, mesh)
            shard(self.ema.average, mesh)
            if self.criterion.uncertainty is not None:
                fully_shard(self.criterion.uncertainty, mesh=mesh)

    def averaged(self) -> ConditionalDenoiser:
        """The network with averaged weights, all of them on this device; all devices have to ask for it."""
        average = self.ema.average
        return average if self.whole is None else self.whole.copy(average)

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of a batch."""
        return self.criterion(self.model, batch).minimised.mean()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """The mean loss of a batch; logged without the learned uncertainty, beside it where there is one."""
        minimised, plain = (loss.mean() for loss in self.criterion(self.model, batch))
        self.log("train/loss", plain, sync_dist=True)
        if self.criterion.uncertainty is not None:
            self.log("train/minimised", minimised, sync_dist=True)
        return minimised

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser over denoiser, conditioner and loss; the budget sets its learning rate at every step."""
        return self.optimizer(parameter_groups(self.model.network, self.criterion))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step of the optimiser, then of the average: with accumulated gradients that is not every batch."""
        super().optimizer_step(*args, **kwargs)
        self.ema.update(self.model.network)
