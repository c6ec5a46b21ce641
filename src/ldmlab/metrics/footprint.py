"""What a training step takes, found on tensors without contents: nothing is computed, and no memory is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ldmlab.metrics.speed import count_flops


@dataclass(frozen=True)
class Footprint:
    """What a training step takes. Bytes, and floating-point operations of a forward and backward pass.

    Attributes:
        parameters: of the networks that are trained.
        weights: of all networks, those that are frozen and moving averages among them.
        gradients: of the trained weights, once.
        optimizer: what the optimiser keeps of them.
        activations: what the forward pass of one image keeps for the backward pass.
        flops: of one image.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: float
    flops: float

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @property
    def states(self) -> int:
        """All that is there whatever the batch size."""
        return self.weights + self.gradients + self.optimizer


@contextmanager
def weightless() -> Iterator[None]:
    """Tensors made within the block have shapes and types but no contents."""
    with (
        torch.device("meta"),
        mock.patch.object(F, "scaled_dot_product_attention", _attention),
        mock.patch.object(torch, "autocast", return_value=nullcontext()),  # which knows no such device
    ):
        yield


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """Attention as devices compute it; without contents torch would compute, and keep, the matrix of all pairs."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def footprint(
    modules: Sequence[nn.Module],
    trained: nn.Module,
    loss: Callable[[], Tensor],
    images: int,
    optimizers: Callable[[], Any],
    copies: int = 0,
    half: bool = False,
) -> Footprint:
    """The footprint of training `trained` by the loss of a batch of `images` images.

    Called within `weightless`, where all was built. `modules` are all networks that the loss passes through. Of the
    trained weights `copies` are kept beside them, as a moving average is. `optimizers` makes the optimiser, or a list
    of them. `half`: in mixed precision, which keeps activations in 16 bits, and a copy of the weights.
    """
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    owned = {tensor.untyped_storage()._cdata for tensor in tensors}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = storage  # held, so that no other has its address
        return tensor

    def step() -> None:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss()
        value.backward()

    flops = count_flops(step)
    made = optimizers()
    kept_by_optimizers: list[Any] = []
    for optimizer in made if isinstance(made, list) else [made]:
        for group in optimizer.param_groups:
            group |= {"fused": False} if group.get("fused") else {}  # has no kernel here, and keeps the same
        optimizer.step()
        kept_by_optimizers += [value for state in optimizer.state.values() for value in state.values()]
    of_trained = size_of(trained.parameters())
    return Footprint(
        parameters=sum(parameter.numel() for parameter in trained.parameters()),
        weights=size_of(tensors) + copies * of_trained + (of_trained // 2 if half else 0),
        gradients=of_trained,
        optimizer=size_of(value for value in kept_by_optimizers if isinstance(value, Tensor)),
        activations=sum(storage.nbytes() for storage in kept.values()) / (2 * images if half else images),
        flops=flops / images,
    )


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, a shared one once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
