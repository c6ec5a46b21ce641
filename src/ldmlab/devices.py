"""Which GPU a process computes on where several share a machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

HELD: list[FileLock] = []
"""What this process has taken, until it ends."""


def gpu_count() -> int:
    """GPUs of this machine; asks without beginning to use them."""
    import torch

    return torch.cuda.device_count()


def take_a_gpu(count: Callable[[], int] = gpu_count, folder: Path | None = None) -> int | None:
    """Makes one GPU that no other process has taken the only one that this process sees; returns its number.

    For the processes of launchers that run several jobs at a time. None, and nothing is changed, where there is at most
    one, where whoever started this process has chosen already, and where all are taken.
    """
    if HELD or "CUDA_VISIBLE_DEVICES" in os.environ or (several := count()) < 2:
        return None
    folder = folder or Path(tempfile.gettempdir())
    for number in range(several):
        lock = FileLock(folder / f"ldmlab-gpu-{number}.lock", mode=0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        HELD.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number)
        return number
    return None
