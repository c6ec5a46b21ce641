"""How processes train one run together: what one does for all, what each has of its own, and by what strategy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from ldmlab import processes
from ldmlab.errors import UserError
from ldmlab.modules.latent_diffusion import LatentDiffusionModule
from ldmlab.tasks import build
from ldmlab.tasks.quality import seed_of
from ldmlab.tasks.run import Run, RunState
from ldmlab.types import ImageData

Config = dict[str, Any]


@contextlib.contextmanager
def only_ours(run: Run) -> Iterator[None]:
    """Holds a run for the processes of this one; waits, and says so, while others train it."""
    with run.lock() if processes.rank() == 0 else contextlib.nullcontext():
        yield


def state_of(run: Run) -> RunState:
    """What the run's folder holds; the same in all processes."""
    return processes.from_first(lambda: run.state(run.config["overwrite"]))


def open_data(config: Config) -> ImageData:
    """The data of a run, decoded; by the first process, and then read by the others."""

    def opened() -> ImageData:
        data = build.build_data(config)
        data.split("train"), data.split("val")
        return data

    return processes.first_then_others(opened)


def share_of(batch_size: int, option: str) -> int:
    """This process's part of every batch.

    Raises:
        UserError: the batch cannot be shared evenly.
    """
    count = processes.world_size()
    if batch_size % count:
        raise UserError(f"{option}: {batch_size} images cannot be shared evenly by {count} processes")
    return batch_size // count


def strategy_for(module: L.LightningModule, config: Config) -> Strategy | str:
    """How the processes of a run share the training of a module."""
    count = processes.world_size()
    if count == 1:
        return "auto"
    if config["trainer"]["lightning"].get("strategy") == "fsdp" and isinstance(module, LatentDiffusionModule):
        # one file for all, which any number of processes can go on from
        return ModelParallelStrategy(count, 1, save_distributed_checkpoint=False)
    return DDPStrategy() if module.automatic_optimization else OwnGradients()


class OwnGradients(DDPStrategy):
    """For a module that optimises by itself, and averages its gradients over the processes where it does.

    It has several losses, none of which reaches all of its networks: DDP would wait for gradients that never come.
    """

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Does not expect any gradient."""


def draw_apart(seed: int) -> None:
    """Gives each process random numbers of its own; the first one has those that it would have alone."""
    if processes.rank() > 0:
        L.seed_everything(seed_of(seed, processes.rank()) % 2**32, verbose=False)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values are finite, in all processes."""
    own = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    fine = all(bool(tensor.isfinite().all()) for tensor in own)
    return bool(processes.gather_numbers([fine]).amin())


def check_agreement(module: L.LightningModule) -> None:
    """Raises RuntimeError if processes that should have the same weights have not."""
    whole = [p.detach().double() for p in module.parameters() if not isinstance(p, DTensor)]
    sums = processes.gather_numbers([float(sum(p.sum() for p in whole)), float(sum(p.abs().sum() for p in whole))])
    # not to the last digit: GPUs of two kinds multiply matrices in two ways
    if not torch.allclose(sums, sums[0].expand_as(sums), rtol=1e-4, equal_nan=True):
        raise RuntimeError(f"the weights of {len(sums)} processes have drifted apart")
