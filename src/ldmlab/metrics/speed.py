"""What a model costs: seconds, memory, parameters and floating-point operations."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


@dataclass(frozen=True)
class Speed:
    """Seconds per call with the conditions under which they hold; quartiles, since other processes make outliers."""

    seconds: float
    """Median wall-clock seconds per call."""
    seconds_lower: float
    """First quartile of wall-clock seconds per call."""
    seconds_upper: float
    """Third quartile of wall-clock seconds per call."""
    cpu_seconds: float
    """Median CPU seconds of this process per call, all threads together.

    Far below `seconds` times `threads` on a busy machine, or when the work is elsewhere (a GPU).
    """
    images_per_s: float
    """Images per second at the median: `batch_size / seconds`."""
    batch_size: int
    repeats: int
    warmup: int
    threads: int
    """Threads that torch may use within one operation."""
    device: str
    """Name of the device, such as "NVIDIA A100-SXM4-80GB"."""


def measure_speed(
    sample: Callable[[int], Any],
    batch_size: int,
    repeats: int = 10,
    warmup: int = 2,
    device: torch.device | str = "cpu",
) -> Speed:
    """Times `sample(batch_size)`, which makes that many images on `device`.

    The first `warmup` calls are excluded: they compile, choose kernels and fill caches. The device is idle before
    each reading of the clock; without that a GPU has only accepted the work, not done it.
    """
    if repeats < 1 or batch_size < 1:
        raise ValueError(f"repeats and batch_size must be 1 or more, got {repeats} and {batch_size}")
    device = torch.device(device)
    for _ in range(warmup):
        sample(batch_size)
    wall, cpu = [], []
    for _ in range(repeats):
        synchronize(device)
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        sample(batch_size)
        synchronize(device)
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
    lower, median, upper = statistics.quantiles(wall, n=4, method="inclusive") if repeats > 1 else wall * 3
    return Speed(
        seconds=median,
        seconds_lower=lower,
        seconds_upper=upper,
        cpu_seconds=statistics.median(cpu),
        images_per_s=batch_size / median,
        batch_size=batch_size,
        repeats=repeats,
        warmup=warmup,
        threads=torch.get_num_threads(),
        device=device_name(device),
    )


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


def reset_peak_memory(device: torch.device | str) -> None:
    """Starts a new peak on a CUDA device. Elsewhere the peak is that of the process's life, and nothing happens."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device | str) -> float:
    """Most memory ever in use, in 10⁶ bytes.

    On CUDA, of tensors, since `reset_peak_memory`; elsewhere, of this whole process in main memory, since its start.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # bytes on macOS, KiB elsewhere
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters, a shared one once; buffers do not count."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


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
