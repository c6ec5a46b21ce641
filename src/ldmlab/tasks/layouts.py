"""How a run is laid out over devices, and what that takes: arithmetic on a footprint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ldmlab.metrics.footprint import Footprint

BYTES = 4  # of a gradient, as weights are float32 under mixed precision too


@dataclass(frozen=True)
class Device:
    """What a device is capable of.

    Attributes:
        flops: floating-point operations in a second that training reaches.
        memory: bytes that a run may use.
        link: bytes in a second from one device to the next.
        precision: what `flops` are computed in.
    """

    name: str
    flops: float
    memory: float
    link: float
    precision: str


@dataclass(frozen=True)
class Layout:
    """A way to train on a number of devices.

    Attributes:
        strategy: "one" device, "ddp": each holds all, or "fsdp": each holds a part of weights, gradients and
            optimiser.
        micro_batch: images that a device takes at once.
        accumulate: such batches to a step of the optimiser.
        memory: bytes in use on each device.
        seconds: of a step of the optimiser.
    """

    devices: int
    strategy: str
    micro_batch: int
    accumulate: int
    memory: float
    seconds: float


def layouts(need: Footprint, batch: int, device: Device, most: int) -> Iterator[Layout]:
    """For 1, 2, 4, ... up to `most` devices that share the batch evenly, the layout that fits; none where none does.

    DDP where all fits on each device, FSDP otherwise, in both with the largest batches that fit.
    """
    count = 1
    while count <= most:
        if batch % count == 0:
            for strategy in ("ddp", "fsdp") if count > 1 else ("one",):
                layout = _layout(need, batch // count, device, count, strategy)
                if layout is not None:
                    yield layout
                    break
        count *= 2


def _layout(need: Footprint, share: int, device: Device, count: int, strategy: str) -> Layout | None:
    states = need.states / count if strategy == "fsdp" else need.states
    # the largest part of a step's batch that fits
    for micro_batch in (size for size in range(share, 0, -1) if share % size == 0):
        memory = states + micro_batch * need.activations
        if memory <= device.memory:
            computing = share * need.flops / device.flops
            return Layout(
                count, strategy, micro_batch, share // micro_batch, memory,
                computing + _waiting(need, computing, device, count, strategy),
            )  # fmt: skip
    return None


def _waiting(need: Footprint, computing: float, device: Device, count: int, strategy: str) -> float:
    """Seconds of a step in which devices wait for one another.

    A ring sends all gradients around twice, less one part (Patarasuk and Yuan 2009); FSDP weights once more in the
    forward pass. DDP sends while it computes the rest of the backward pass, two thirds of a step.
    """
    if count == 1:
        return 0.0
    rounds = 3 if strategy == "fsdp" else 2
    sending = rounds * (count - 1) / count * BYTES * need.parameters / device.link
    return max(0.0, sending - 2 / 3 * computing)
