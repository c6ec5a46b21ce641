"""Rows shared among processes, each once, and their features brought together again in order."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ldmlab.errors import UserError

T = TypeVar("T")


def join(device: torch.device) -> torch.device:
    """Joins the processes that `torchrun` started, once and for good, and returns this one's device.

    Does nothing without torchrun, or where a trainer has joined them already. `device` is what all would use alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(f"torchrun: more processes than the {torch.cuda.device_count()} GPUs of this machine")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # the others wait while the first one measures speed
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=12))
        atexit.register(dist.destroy_process_group)
    return device


def rank() -> int:
    """The number of this process, 0 where there is but one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int) -> Sequence[int]:
    """The rows among `count` that are this process's: every `world_size()`-th. No row has two owners, none has none.

    Raises `UserError`, everywhere, where some process would have no row.
    """
    if count < world_size():
        raise UserError(f"torchrun: {world_size()} processes are too many to share {count} images")
    return range(rank(), count, world_size())


def gather_rows(own: Tensor, count: int) -> Tensor:
    """All `count` rows (count, ...) in their order, from each process's rows of `share(count)`; the same everywhere."""
    if world_size() == 1:
        return own
    longest = -(-count // world_size())
    on_gpus = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpus else torch.device("cpu")
    padded = torch.zeros(longest, *own.shape[1:], dtype=own.dtype, device=device)
    padded[: len(own)] = own.to(device)
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    rows = torch.empty(count, *own.shape[1:], dtype=own.dtype, device=device)
    for owner, part in enumerate(parts):
        mine = rows[owner :: world_size()]
        mine.copy_(part[: len(mine)])
    return rows.to(own.device)


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, everywhere; the others wait for it.

    For what one can do alone, and for decisions on a disk that another program may be writing to.
    """
    made: list[Any] = [make() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(made, src=0)
    return made[0]


def wait() -> None:
    """Returns when all processes have come here."""
    if world_size() > 1:
        dist.barrier()
