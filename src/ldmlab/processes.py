"""Several processes at one run: how they meet, what each does, and what all of them know."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ldmlab.errors import UserError, for_the_user

T = TypeVar("T")

PATIENT: list[Any] = []
"""The group of all in which the others wait for the first one, which may wait for another job's autoencoder."""


def join(device: torch.device) -> torch.device:
    """Joins the processes that were started together, once and for good, and returns this one's device.

    Does nothing where there is but one. `device` is what all would use alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(f"there are more processes than the {torch.cuda.device_count()} GPUs of this machine")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # the small numbers of this module go from CPU to CPU, so that no GPU has to stop for them; and the others wait
        # while the first one measures speed
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=12))
        PATIENT.append(dist.new_group(backend="gloo", timeout=timedelta(days=7)))
        atexit.register(dist.destroy_process_group)
    return device


def rank() -> int:
    """The number of this process, 0 where there is but one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def on_this_machine() -> int:
    """How many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size()))) if world_size() > 1 else 1


def share(count: int) -> Sequence[int]:
    """The rows among `count` that are this process's: every `world_size()`-th. No row has two owners, none has none.

    Raises `UserError`, everywhere, where some process would have no row.
    """
    if count < world_size():
        raise UserError(f"{world_size()} processes are too many to share {count} images")
    return range(rank(), count, world_size())


def gather_rows(own: Tensor, count: int) -> Tensor:
    """All `count` rows (count, ...) in their order, from each process's rows of `share(count)`; the same everywhere."""
    if world_size() == 1:
        return own
    longest = -(-count // world_size())
    padded = torch.zeros(longest, *own.shape[1:], dtype=own.dtype, device=own.device)
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    rows = torch.empty(count, *own.shape[1:], dtype=own.dtype, device=own.device)
    for owner, part in enumerate(parts):
        mine = rows[owner :: world_size()]
        mine.copy_(part[: len(mine)])
    return rows


def gather_numbers(own: Sequence[float]) -> Tensor:
    """What each process has in place of `own`, (world_size, len(own)) in float64; the same everywhere."""
    numbers = torch.tensor(own, dtype=torch.float64)
    if world_size() == 1:
        return numbers[None]
    every = [torch.empty_like(numbers) for _ in range(world_size())]
    dist.all_gather(every, numbers)
    return torch.stack(every)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces the gradients of parameters by their means over all processes; all have to have the same ones."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not gradients:
        return
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    parts = (together / world_size()).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def gather_objects(own: T) -> list[T]:
    """What each process has in place of `own`, for anything that can be pickled."""
    if world_size() == 1:
        return [own]
    every: list[Any] = [None] * world_size()
    dist.all_gather_object(every, own)
    return every


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, everywhere; the others wait for it, and fail as it does.

    For what one can do alone, and for decisions on a disk that another program may be writing to.
    """
    if world_size() == 1:
        return make()
    made: list[Any] = [None, None]
    if rank() == 0:
        try:
            made[0] = make()
        except Exception as error:
            known = for_the_user(error)
            if not isinstance(known, UserError):
                raise
            made[1] = known
    dist.broadcast_object_list(made, src=0, group=PATIENT[0] if PATIENT else None)
    if made[1] is not None:
        raise made[1]
    return made[0]


def first_then_others(make: Callable[[], T]) -> T:
    """What each process makes for itself, the others once the first one has: they find what it left on the disk."""
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else make()


def wait() -> None:
    """Returns when all processes have come here."""
    gather_numbers([0.0])
