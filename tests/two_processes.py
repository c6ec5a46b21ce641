"""Two real processes, that talk by gloo."""

import torch
import torch.multiprocessing as multiprocessing


def in_two_processes(target, folder):
    """Runs target(rank, folder) in two processes of one group."""
    multiprocessing.spawn(_joined, (target, str(folder)), nprocs=2)


def _joined(rank, target, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        target(rank, folder)
    finally:
        torch.distributed.destroy_process_group()
