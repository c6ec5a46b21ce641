"""How fast the error of each solver falls with its steps, on a Gaussian mixture whose denoiser is exact.

    python benchmarks/solvers.py

Prints the table of docs/diffusion.md. `ldmlab.diffusion.closed_form` says how the order is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ldmlab.diffusion.closed_form import measured_order
from ldmlab.diffusion.samplers import PLMS, DPMpp1, DPMpp2M, DPMpp3M, Euler, Heun, Sampler, UniPC
from ldmlab.diffusion.schedules import EDM, Cosine, Linear, RectifiedFlow

SCHEDULES = [Linear(), Cosine(), EDM(), RectifiedFlow()]
SOLVERS: dict[str, tuple[Callable[..., Sampler], int]] = {
    "euler, ddim": (Euler, 1),
    "dpmpp_1": (DPMpp1, 1),
    "plms": (PLMS, 2),
    "heun": (Heun, 2),
    "dpmpp_2m": (DPMpp2M, 2),
    "dpmpp_3m": (DPMpp3M, 3),
    "unipc, order 1": (partial(UniPC, order=1), 2),
    "unipc, order 2": (partial(UniPC, order=2), 3),
    "unipc, order 3": (partial(UniPC, order=3), 4),
}


def main() -> None:
    """Prints the table."""
    names = [type(schedule).__name__ for schedule in SCHEDULES]
    print(f"| sampler | order | {' | '.join(names)} |")
    print("| --- | ---: |" + " ---: |" * len(names))
    for name, (make, order) in SOLVERS.items():
        slopes = (f"{measured_order(make, schedule):.2f}" for schedule in SCHEDULES)
        print(f"| {name} | {order} | {' | '.join(slopes)} |")


if __name__ == "__main__":
    main()
