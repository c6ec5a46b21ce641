"""Rows shared among processes, each once, and their features brought together again in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def from_environment() -> Iterator[None]:
    """Joins the processes that `torchrun` started, for as long as the block lasts; does nothing without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # the others wait while the first one measures speed
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(hours=12))
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 where there is but one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int) -> range:
    """The rows among `count` that are this process's: every `world_size()`-th. No row has two owners, none has none."""
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


def agreed(value: bool) -> bool:
    """What the first process says, everywhere: for decisions on a disk that another program may be writing to."""
    if world_size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def wait() -> None:
    """Returns when all processes have come here."""
    if world_size() > 1:
        dist.barrier()
