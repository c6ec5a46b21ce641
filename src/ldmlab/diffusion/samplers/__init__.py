"""Samplers: from noise back to data, in exactly `steps` steps.

A sampler is a frozen set of options and a pure function of (denoise, noise, schedule, randn_like): it keeps no state,
and sees the network only as `denoise(xt, t) -> Prediction`, so that any sampler works with any prediction type and
schedule. `randn_like` supplies the fresh noise of stochastic samplers; see `PerSampleNoise`.
"""

from ldmlab.diffusion.samplers.ancestral import DDIM, DDPM, EulerAncestral
from ldmlab.diffusion.samplers.base import Denoise, PerSampleNoise, Point, RandnLike, Sampler
from ldmlab.diffusion.samplers.dpm_solver import DPMpp1, DPMpp2M, DPMpp2MSDE, DPMpp3M
from ldmlab.diffusion.samplers.ode import PLMS, Euler, Heun
from ldmlab.diffusion.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "PLMS",
    "DPMpp1",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp3M",
    "Denoise",
    "Euler",
    "EulerAncestral",
    "Heun",
    "PerSampleNoise",
    "Point",
    "RandnLike",
    "Sampler",
    "UniPC",
]
