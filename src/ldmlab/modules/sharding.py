"""A network whose weights are spread over devices (fully sharded data parallel, Zhao et al. 2023), and whole again."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ldmlab.denoisers.layers import ResidualBlock, SelfAttention, SpatialTransformer
from ldmlab.modules.model import ConditionalDenoiser

UNITS = (ResidualBlock, SelfAttention, SpatialTransformer)
"""Layers whose weights come together for their turn, and are spread again after it."""


def shard(network: ConditionalDenoiser, mesh: DeviceMesh) -> None:
    """Spreads the weights over the devices of `mesh`, in place; all of them have to call the network together."""
    # a layer takes what those within it have left
    for layer in reversed(list(network.denoiser.modules())):
        if isinstance(layer, UNITS):
            fully_shard(layer, mesh=mesh)
    fully_shard(network.denoiser, mesh=mesh)
    fully_shard(network.conditioner, mesh=mesh)


class Whole:
    """Makes whole copies of a network that `shard` has spread, or will have; it keeps no weights itself."""

    def __init__(self, network: ConditionalDenoiser):
        self.skeleton = copy.deepcopy(network).to("meta")

    def copy(self, network: ConditionalDenoiser) -> ConditionalDenoiser:
        """A network with all weights of `network` on this device, to sample from; all devices have to ask for it."""
        device = next(network.parameters()).device
        whole = copy.deepcopy(self.skeleton).to_empty(device=device)
        with torch.no_grad():
            for own, spread in zip(values_of(whole), values_of(network), strict=True):
                own.copy_(spread.full_tensor() if isinstance(spread, DTensor) else spread)
        return whole.requires_grad_(False).eval()


def values_of(network: ConditionalDenoiser) -> Iterator[Tensor]:
    """Weights and buffers."""
    yield from network.parameters()
    yield from network.buffers()


def own_part(values: Tensor) -> Tensor:
    """What this device holds of a tensor."""
    return values.to_local() if isinstance(values, DTensor) else values
