"""What a model costs: seconds, memory, parameters and floating-point operations."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ldmlab.errors import UserError


def synchronize(device: torch.device | str) -> None:
    """Waits until the device has done all that it was given; a CPU always has."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device | str) -> str:
    """The device's model, as its maker names it where the system says so."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.is_file():
        # platform.processor() is "x86_64" or empty on Linux
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def reset_peak_memory(device: torch.device | str) -> str:
    """Starts a new peak where the system can, and says what `peak_memory_mb` will cover from now on.

    On CUDA that is tensors on the device; on Linux, all main memory of this process; elsewhere, the same since its
    start, because such a system keeps one peak for a process's life.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "tensors on the device"
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return "main memory of the process since its start"
    return "main memory of the process"


def peak_memory_mb(device: torch.device | str) -> float:
    """Most memory in use since `reset_peak_memory`, in 10⁶ bytes; see there for what counts."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # bytes on macOS, KiB elsewhere
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def time_repeats(work: Callable[[], Any], repeats: int, device: torch.device | str, warmups: int = 3) -> list[float]:
    """Seconds that `work` takes, `repeats` times after `warmups` that do not count, the device having done its work."""
    seconds = []
    for repeat in range(warmups + repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        if repeat >= warmups:
            seconds.append(time.perf_counter() - start)
    return seconds


def best_batch_size(throughput: Callable[[int], float], largest: int) -> tuple[int, list[int]]:
    """The smallest batch size whose throughput is within 3 % of the best among 1, 2, 4, ... up to `largest`.

    Also returns the sizes that were tried: it stops where two doublings in a row gained nothing, or memory ends.
    """
    found: dict[int, float] = {}
    size, without_gain = 1, 0
    while size <= largest and without_gain < 2:
        best = max(found.values(), default=0.0)
        try:
            found[size] = throughput(size)
        except torch.OutOfMemoryError:
            if not found:
                raise UserError("metrics.speed_batch: memory is too small for a single image") from None
            break
        without_gain = 0 if found[size] > 1.03 * best else without_gain + 1
        size *= 2
    enough = max(found.values()) / 1.03
    return next(size for size, value in found.items() if value >= enough), list(found)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, a shared one once; buffers do not count."""
    return sum(p.numel() for p in module.parameters())


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions in one call of `function`.

    A multiplication with its addition counts as two. Pointwise operations, norms and resizes do not count. Backward
    passes within `function` do.
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        function()
    return counter.get_total_flops()


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    grad: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# torch has no formula for its fused attention on a CPU and would count it as nothing
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
